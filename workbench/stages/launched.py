"""What `accelerate launch` runs in every process of a training job: `python -m workbench.stages.launched JOB`."""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.child import leave_error, leave_with_parent
from workbench.errors import DataError, WorkbenchError
from workbench.training.job import Job, load_job
from workbench.training.launch import rank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.training.trainer import ScoreModel


def main() -> None:
    """Train, and leave as soon as whoever started the launch is gone."""
    leave_with_parent()
    run(load_job(Path(sys.argv[1])))


def run(job: Job) -> None:
    """Train in this process, one of those launched together. What the user can cure goes to `error.json` instead of a traceback."""
    from workbench.training.trainer import fit

    with (job.workspace / f"rank-{rank()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a killed run's process may need a moment to die
        try:
            fit(job, _score_model(job))
        except WorkbenchError as error:
            if rank() == 0:
                leave_error(job.workspace, error)


def _score_model(job: Job) -> ScoreModel | None:
    """The task's metric on the validation examples, where the recipe stops early by it."""
    if job.train.early_stopping is None or job.train.early_stopping.metric != "score":
        return None
    from workbench.data.example import Example
    from workbench.data.render import Renderer
    from workbench.evaluation.answer import answer
    from workbench.evaluation.metrics import scorer
    from workbench.models.load import load_tokenizer
    from workbench.training.packing import PACKED

    renderer = Renderer(load_tokenizer(job.model, trust_remote_code=job.trust_remote_code), job.task)
    examples = [Example.from_json(json.loads(line)) for line in job.validation_examples.read_text(encoding="utf-8").splitlines()]
    metric = scorer(job.task, base=job.recipe_folder)

    def score(model: PreTrainedModel) -> float:
        attention = PACKED if job.train.packing else "sdpa"
        model.set_attn_implementation("sdpa")  # packing's attention knows no cache
        try:
            rows = answer(model, renderer, examples, job.task, metric, batch_tokens=2048, advance=_silent)
        finally:
            model.set_attn_implementation(attention)
        scores = [row["score"] for row in rows if row["score"] is not None]
        if not scores:
            raise DataError("no validation example can be scored", where="train.early_stopping", fix="stop early by loss instead")
        return float(sum(scores) / len(scores))

    return score


def _silent(done: float, note: str = "", /) -> None:
    """The parent shows progress from the events; an evaluation inside training adds none."""


if __name__ == "__main__":
    main()
