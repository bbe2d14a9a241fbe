"""Stage `train`: rows rendered to tokens, checked, then trained on by what `accelerate launch` starts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.child import outcome, read_events
from workbench.data.example import Example
from workbench.data.render import Renderer, Row, fit, quantile
from workbench.digest import file_digest
from workbench.errors import TrainingError
from workbench.progress import Advance, say, track
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Train
from workbench.stages import launched
from workbench.stages.data import examples_of
from workbench.stages.scoring import scoring_section
from workbench.stages.stage import Stage, Work
from workbench.training.job import Job
from workbench.training.launch import follow, launched_together

#: What `python -m` runs in every launched process.
ENTRY = "workbench.stages.launched"

#: Logged numbers that become metrics, by the Trainer's name.
METRICS = {
    "loss": "train/loss",
    "mean_token_accuracy": "train/token_accuracy",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "validation/loss",
    "eval_token_accuracy": "validation/token_accuracy",
    "eval_score": "validation/score",
}


def train_stage(loaded: Loaded, train: Train, model: Stage, data: Stage) -> Stage:
    """The stage that fine-tunes the base model of a recipe."""
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        from workbench.models.prepare import recast
        from workbench.training.checkpoints import last_complete

        job = prepare(
            loaded,
            train,
            work.inputs["model"].path,
            work.inputs["data"].path,
            work.workspace,
            origin=str(work.inputs["model"].facts["origin"]),
        )
        rows = json.loads((job.workspace / "rows.json").read_text())
        log = _Log(work)
        if launched_together():
            launched.run(job)
            outcome(work.workspace, 0, what="training", log=work.workspace / "launch.log", kind=TrainingError, fix="see the log")
            read_events(job.events, 0, log)
        else:
            checkpoint = last_complete(job.checkpoints)
            begin = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
            with track("training", train.steps(rows["rows"], job.launch.num_processes), begin=begin) as advance:
                log.advance = advance
                follow(job, ENTRY, log)
        shutil.copytree(job.trained, work.staging, dirs_exist_ok=True)
        if train.method == "full":
            recast(work.staging, recipe.model.dtype)
        (work.staging / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log.history()))
        return {**json.loads(job.result.read_text()), **log.facts(), **rows, "method": train.method}

    config = loaded.file(recipe.launch.config_file) if recipe.launch.config_file else None
    section = {
        "train": train.model_dump(exclude={"save_steps"}),
        "launch": recipe.launch.model_dump(exclude={"threads", "config_file"}),
        "config_file": file_digest(config) if config is not None and config.is_file() else None,
        "dtype": recipe.model.dtype,
        "task": scoring_section(recipe.task, loaded.base)
        if train.early_stopping is not None and train.early_stopping.metric == "score"
        else recipe.task.model_dump(include={"chat", "system"}),
    }
    return Stage("train", 1, section, make, (model, data), ("torch", "transformers", "peft", "trl", "accelerate"))


def prepare(loaded: Loaded, train: Train, model: Path, data: Path, workspace: Path, *, origin: str) -> Job:
    """Render the rows and write everything the launched processes need into the workspace.

    Raises:
        DataError: rows that are too long, under `overflow: refuse`.
        TrainingError: no row would teach anything, or the base is quantised, so that the adapter could not be merged.
    """
    from workbench.models.load import load_tokenizer
    from workbench.training.merge import refuse_quantized

    refuse_quantized(model)

    recipe = loaded.recipe
    renderer = Renderer(load_tokenizer(model, trust_remote_code=recipe.model.trust_remote_code), recipe.task)
    job = Job(workspace, model, origin, recipe.model.dtype, recipe.model.trust_remote_code, train, recipe.launch, recipe.task, loaded.base)
    rows, validation = examples_of(data, "train"), examples_of(data, "validation")
    kept, overlong = rendered(renderer, rows, train)
    kept_validation, _ = rendered(renderer, validation, train)
    check_supervision(kept, renderer)
    _write_rows(job.train_rows, kept)
    _write_rows(job.validation_rows, kept_validation)
    shutil.copyfile(data / "validation.jsonl", job.validation_examples)
    facts = {
        "rows": len(kept),
        "rows_overlong": overlong,
        "overflow": train.overflow,
        "tokens": sum(len(row.input_ids) for row in kept),
        "supervised_tokens": sum(sum(row.supervised) for row in kept),
        "length_p50": quantile([len(row.input_ids) for row in kept], 0.5),
        "length_max": max(len(row.input_ids) for row in kept),
        "rendering": renderer.fingerprint,
    }
    (workspace / "rows.json").write_text(json.dumps(facts))
    if overlong:
        say(f"  {overlong} of {len(rows)} training rows are longer than {train.max_length} tokens: {train.overflow}")
    job.save()  # last: processes launched beside this one begin when they see it
    return job


def rendered(renderer: Renderer, examples: Sequence[Example], train: Train) -> tuple[list[Row], int]:
    """Training rows of examples after `train.overflow`, and how many rows it concerned."""
    return fit([renderer.row(example, train.loss) for example in examples], train.max_length, train.overflow)


def check_supervision(rows: Sequence[Row], renderer: Renderer) -> None:
    """Refuse rows from which nothing, or never to stop, would be learnt.

    Raises:
        TrainingError: no row is left, a row has no supervised token, or its answer does not end with the end-of-sequence token.
    """
    if not rows:
        raise TrainingError("every training row is longer than train.max_length", where="train.max_length", fix="raise it")
    silent = [row for row in rows if not any(label >= 0 for label in row.labels)]
    if silent:
        raise TrainingError(
            f"{len(silent)} of {len(rows)} rows have no supervised token, so they teach nothing",
            where=silent[0].where,
            fix="check train.loss and train.max_length",
        )
    endless = [row for row in rows if row.labels[-1] not in renderer.eos_ids]
    if endless and len(endless) == len(rows):
        raise TrainingError(
            "no answer ends with a supervised end-of-sequence token, so the model would never learn to stop",
            where=endless[0].where,
            fix="raise train.max_length so that the ends of the answers are kept",
        )


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens = pa.list_(pa.int32())
    table = pa.table(
        {"input_ids": pa.array([row.input_ids for row in rows], tokens), "labels": pa.array([row.labels for row in rows], tokens)}
    )
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.rename(path)


class _Log:
    """The Trainer's log lines as progress and metrics. A resumed run repeats steps after its checkpoint: the later line counts."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.advance: Advance | None = None
        self.events: dict[tuple[int, bool], dict[str, Any]] = {}
        self.began = time.time()
        self.note = ""

    def __call__(self, event: Mapping[str, Any]) -> None:
        step, is_evaluation = int(event["step"]), "eval_loss" in event
        if "train_runtime" in event:  # the Trainer's closing line; counts only the last attempt
            return
        self.events[step, is_evaluation] = dict(event)
        self.work.report({name: float(event[key]) for key, name in METRICS.items() if key in event}, step)
        if "loss" in event:
            self.note = f"loss {event['loss']:.3f}"
        if self.advance is not None and event["time"] >= self.began:
            self.advance(step, self.note)

    def history(self) -> list[dict[str, Any]]:
        return [self.events[key] for key in sorted(self.events)]

    def facts(self) -> dict[str, Any]:
        steps = [event for event in self.history() if "loss" in event]
        evaluations = [event for event in self.history() if "eval_loss" in event]
        return {
            "loss": steps[-1]["loss"] if steps else None,
            "validation_loss": evaluations[-1]["eval_loss"] if evaluations else None,
            "planned_steps": steps[-1]["total"] if steps else None,
        }
