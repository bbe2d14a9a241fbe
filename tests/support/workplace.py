"""A folder to work in, as a user has it: a recipe, its data, a tiny real model, and the command line."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from workbench.cli import main
from workbench.recipe.load import Loaded, load

#: An address at which nobody listens: MLflow is away at once, and no database has to be made.
NOBODY = "http://127.0.0.1:9"

#: Set while the shared run of the tests is made; their values must be found nowhere afterwards.
SECRETS = {name: f"{name.lower().replace('_', '-')}-value-{'q' * 20}" for name in ("HF_TOKEN", "OPENAI_API_KEY", "MY_DB_PASSWORD")}

RECIPE = """\
name: desk
model: {source: model, license: mit}
data:
  source: rows.jsonl
  format: prompt_completion
  columns: {prompt: text, completion: label, metadata: [topic]}
  split: {train: 0.5, validation: 0.2, calibration: 0.1, test: 0.2, seed: 1}
task:
  prompt: "{text}\\nAnswer: "
  metric: label
  labels: ["yes", "no"]
  max_new_tokens: 4
"""

TRAIN = """\
train: {rank: 8, max_steps: 20, batch_size: 8, max_length: 64, learning_rate: 5.0e-2, eval_steps: 10}
launch: {mixed_precision: "no", threads: 1}
merge: {check_prompts: 4, check_tokens: 4}
"""

GUARDS = """\
evaluate:
  guards:
    - {name: near, source: near.jsonl, format: prompt_completion, columns: {prompt: text, completion: label}, floor: 0.0}
    - name: far
      source: far.jsonl
      format: prompt_completion
      columns: {prompt: text, completion: label}
      task: {prompt: "{text}", metric: function, function: "scoring:grade", max_new_tokens: 2}
      floor: 1.0
"""

QUANTIZE = """\
quantize:
  - {method: bitsandbytes, bits: 8}
  - {method: gptq, bits: 4, group_size: 32, calibration: {rows: 32}}
  - {method: bitsandbytes, name: qlora, keep_adapter: true}
select: {at_most: {size_mb: 5}}
"""

#: Scores by the length of the reference; cannot score what holds "7".
SCORING = """\
def grade(output, reference, metadata):
    return None if "7" in reference else 0.25 * (len(reference) % 4)
"""


@dataclass(frozen=True)
class Said:
    """What a command left behind: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Workplace:
    """A folder with a recipe in it."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / ".workbench"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def load(self, *overrides: str, name: str = "desk.yaml") -> Loaded:
        return load(self.folder / name, overrides)

    def __call__(self, *arguments: str) -> Said:
        """Run `workbench` in this folder, in this process."""
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with (
            contextlib.chdir(self.folder),
            patch.object(sys, "argv", ["workbench", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        return Said(code, out.getvalue(), err.getvalue())

    def store(self) -> dict[str, bytes]:
        """Every file of every artifact, half ones included: to prove that the store is as it was."""
        root = self.state / "store"
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def questions(count: int, word: str = "number") -> list[dict[str, Any]]:
    """Short questions that are easy to tell apart: is it even?"""
    return [{"text": f"is the {word} {i} even?", "label": "no" if i % 2 else "yes", "topic": f"t{i % 3}"} for i in range(count)]


def furnish(folder: Path, *parts: str) -> Workplace:
    """A workplace whose recipe `desk.yaml` is made of `parts`; its model folder is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Workplace(folder)
    place.write("desk.yaml", "".join(parts))
    place.rows("rows.jsonl", questions(80))
    place.rows("near.jsonl", questions(12, "figure"))
    place.rows("far.jsonl", [{"text": f"say {i}", "label": str(i)} for i in range(10)])
    place.write("scoring.py", SCORING)
    return place


def stand_in_model(folder: Path) -> Path:
    """What passes for a model folder as long as nothing reads it: enough for keys."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder
