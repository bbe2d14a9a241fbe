"""The whole chain on a tiny model, as a command of its own: what a user types, and what it leaves in the store."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

from tests.support.tiny import make_model

RECIPE = """\
name: tiny
model: {source: model}
data: {source: rows.jsonl, format: prompt_completion, split: {train: 0.6, validation: 0.2, calibration: 0.0, test: 0.2}}
task: {metric: label, labels: ["0", "1"], chat: false, max_new_tokens: 2}
train: {batch_size: 4, max_steps: 12, learning_rate: 1.0e-2, save_steps: 2, eval_steps: 4}
launch: {mixed_precision: "no", threads: 1}
tracking: {register_model: false}
"""


def make_recipe(folder: Path, *, layers: int = 2, hidden: int = 64, text: str = RECIPE) -> Path:
    """A recipe, its model and its 60 rows in one folder."""
    make_model(folder / "model", layers=layers, hidden=hidden)
    rows = [{"prompt": f"Headline: number {index} wins prize\nSarcastic:", "completion": str(index * 7 % 2)} for index in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def environment(**more: str) -> dict[str, str]:
    """Of a command that shares the machine with others and meets no launcher's variables."""
    foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_", "MLFLOW_", "WORKBENCH_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **more}


def artifacts(folder: Path) -> dict[str, Path]:
    """Published artifacts by stage; fails if a stage has two."""
    found: dict[str, Path] = {}
    for path in sorted((folder / ".workbench" / "store").glob("[!.]*")):
        stage = json.loads((path / "artifact.json").read_text())["stage"]
        assert stage not in found, f"two artifacts of stage {stage}"
        found[stage] = path
    return found


def parent_runs(folder: Path) -> int:
    """MLflow runs that are nested in no other."""
    with sqlite3.connect(next(folder.rglob("mlflow.db"))) as database:
        nested = "select run_uuid from tags where key = 'mlflow.parentRunId'"
        return int(database.execute(f"select count(*) from runs where run_uuid not in ({nested})").fetchone()[0])
