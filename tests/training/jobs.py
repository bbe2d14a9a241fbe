"""Small real training jobs: a tiny Llama, rows it can memorise, and what a finished job left behind."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.data.render import IGNORED
from workbench.recipe.schema import Launch, Task, Train
from workbench.training.job import Job

EOS = 1
ORIGIN = "hf://someone/tiny@0123456789abcdef0123456789abcdef01234567"

#: Of `train` in these jobs: few steps, and no evaluation or checkpoint that is not asked for.
DEFAULTS = {
    "batch_size": 4, "learning_rate": 1e-2, "max_steps": 6, "scheduler": "constant", "warmup": 0.0, "eval_steps": 1000, "save_steps": 1000,
}  # fmt: skip

Feature = dict[str, list[int]]


def features(count: int, *, seed: int = 0, shortest: int = 3, longest: int = 12) -> list[Feature]:
    """Random prompts of different lengths, each with an answer of one token and the end-of-sequence token; only those are supervised."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [draw.randrange(2, 380) for _ in range(draw.randint(shortest, longest))]
        answer = [draw.randrange(2, 380), EOS]
        rows.append({"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]})
    return rows


def write_rows(path: Path, rows: Sequence[Feature]) -> None:
    tokens = pa.list_(pa.int32())
    pq.write_table(pa.table({name: pa.array([row[name] for row in rows], tokens) for name in ("input_ids", "labels")}), path)


def job(
    workspace: Path,
    model: Path,
    *,
    rows: Sequence[Feature] | None = None,
    validation: Sequence[Feature] | None = None,
    dtype: str = "float32",
    launch: dict[str, Any] | None = None,
    **train: Any,
) -> Job:
    """A job over 16 rows in batches of 4, in float32, with whatever `train` changes."""
    workspace.mkdir(parents=True, exist_ok=True)
    made = Job(
        workspace,
        model,
        ORIGIN,
        dtype,
        False,
        Train.model_validate({**DEFAULTS, **train}),
        Launch.model_validate({"mixed_precision": "no", "threads": 1, **(launch or {})}),
        Task(metric="exact_match", max_new_tokens=2),
        workspace,
    )
    write_rows(made.train_rows, features(16) if rows is None else rows)
    write_rows(made.validation_rows, features(4, seed=1) if validation is None else validation)
    made.validation_examples.write_text("")
    made.save()
    return made


def fit(job: Job) -> list[dict[str, Any]]:
    """Train in this process; the lines of the job's log."""
    from workbench.training import trainer

    trainer.fit(job, None)
    return events(job)


def events(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.events.read_text().splitlines() if line]


def logged(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Every logged value of one number, in order."""
    return [line[name] for line in lines if name in line]


def result(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(job.result.read_text())
    return found
