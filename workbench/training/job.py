"""What the launched processes of one training run have to know, and where they leave what they found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from workbench.child import forget_outcome, write_json
from workbench.recipe.schema import Launch, Task, Train


@dataclass(frozen=True)
class Job:
    """One training run. Lives as `job.json` in its workspace.

    Attributes:
        workspace: holds the rows, the checkpoints, `events.jsonl`, `result.json` or `error.json`, and in the end `trained/`.
        model: the base model's folder.
        origin: the base model's source as the recipe names it; recorded in the adapter instead of a path of this machine.
        dtype: precision of the frozen weights.
        trust_remote_code: as in the recipe.
        train, launch, task: sections of the recipe.
        recipe_folder: what paths of the recipe are relative to.
    """

    workspace: Path
    model: Path
    origin: str
    dtype: str
    trust_remote_code: bool
    train: Train
    launch: Launch
    task: Task
    recipe_folder: Path

    @property
    def train_rows(self) -> Path:
        return self.workspace / "train.parquet"

    @property
    def validation_rows(self) -> Path:
        return self.workspace / "validation.parquet"

    @property
    def validation_examples(self) -> Path:
        return self.workspace / "validation.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.workspace / "checkpoints"

    @property
    def events(self) -> Path:
        return self.workspace / "events.jsonl"

    @property
    def file(self) -> Path:
        return self.workspace / "job.json"

    @property
    def result(self) -> Path:
        return self.workspace / "result.json"

    @property
    def trained(self) -> Path:
        return self.workspace / "trained"

    def save(self) -> None:
        """Write `job.json`, whole or not at all, and forget how an earlier attempt ended."""
        forget_outcome(self.workspace)
        fields = {
            "model": str(self.model),
            "origin": self.origin,
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            "train": self.train.model_dump(),
            "launch": self.launch.model_dump(),
            "task": self.task.model_dump(),
            "recipe_folder": str(self.recipe_folder),
        }
        write_json(self.file, fields)


def load_job(path: Path) -> Job:
    """Read `job.json`."""
    fields = json.loads(path.read_text())
    return Job(
        workspace=path.parent,
        model=Path(fields["model"]),
        origin=fields["origin"],
        dtype=fields["dtype"],
        trust_remote_code=fields["trust_remote_code"],
        train=Train.model_validate(fields["train"]),
        launch=Launch.model_validate(fields["launch"]),
        task=Task.model_validate(fields["task"]),
        recipe_folder=Path(fields["recipe_folder"]),
    )
