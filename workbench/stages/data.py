"""Stage `data`: the recipe's rows, checked, deduplicated and divided. Stages `data:<guard>`: one guard set each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.data import checks
from workbench.data.example import Example
from workbench.data.readers import read
from workbench.data.splits import SplitSet, contamination, distinct, divide
from workbench.errors import DataError
from workbench.progress import say
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Guard, Split, Task
from workbench.sources.fetch import Materialised
from workbench.stages.stage import Stage, Work

#: Name of the examples in a guard set's artifact.
GUARD = "guard"


def data_stage(loaded: Loaded, source: Materialised, held_out: Mapping[Split, Materialised]) -> Stage:
    """The stage that reads and divides the data of a recipe.

    Args:
        source: the file of `data.source`.
        held_out: the files of `data.held_out`.
    """
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        splits = read_splits(loaded, source, held_out)
        for warning in checks.warnings(splits, recipe.task):
            say(f"  warning: {warning}")
        splits.write(work.staging)
        return {**splits.report.to_json(), "origin": source.origin}

    section = {
        "data": recipe.data.model_dump(exclude={"source", "held_out"}),
        "task": _row_keys(recipe.task),
        "source": source.digest,
        "held_out": {split: file.digest for split, file in held_out.items()},
    }
    return Stage("data", 1, section, make)


def guard_stage(loaded: Loaded, guard: Guard, source: Materialised, data: Stage) -> Stage:
    """The stage that reads one guard set. A stage of its own, so that another guard set leaves data and training as they are."""
    task = guard_task(guard, loaded.recipe.task)

    def make(work: Work) -> dict[str, Any]:
        examples = distinct(read(source.path, format=guard.format, columns=guard.columns, task=task)).examples
        contamination({"train": stored(work.inputs["data"].path, "train"), f"guard {guard.name!r}": examples})
        chosen = sorted(examples, key=lambda example: example.content_key)[: guard.limit]
        lines = (json.dumps(example.to_json(), ensure_ascii=False) + "\n" for example in chosen)
        (work.staging / f"{GUARD}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        return {"rows": len(chosen), "origin": source.origin}

    section = {"guard": guard.model_dump(include={"format", "columns", "limit"}), "task": _row_keys(task), "source": source.digest}
    return Stage(f"data:{guard.name}", 1, section, make, (data,))


def read_splits(loaded: Loaded, source: Materialised, held_out: Mapping[Split, Materialised]) -> SplitSet:
    """The splits of a recipe.

    Raises:
        DataError: bad rows, an empty split, or a prompt that stands in two sets that must be disjoint.
    """
    recipe, data = loaded.recipe, loaded.recipe.data
    rows = read(source.path, format=data.format, columns=data.columns, task=recipe.task)
    others: dict[Split, list[Example]] = {
        split: read(file.path, format=data.format, columns=data.columns, task=recipe.task) for split, file in held_out.items()
    }
    return divide(rows, others, data.split, data.limit, needed=needed_splits(loaded))


def needed_splits(loaded: Loaded) -> tuple[Split, ...]:
    """Splits that must not be empty for this recipe to run."""
    recipe = loaded.recipe
    needed: list[Split] = ["train", "validation"] if recipe.train is not None or recipe.quantize else []
    if recipe.baseline is not None and recipe.baseline.fine_tune is not None:
        needed.append("train")
    return tuple(dict.fromkeys((*needed, recipe.evaluate.split)))


def guard_task(guard: Guard, task: Task) -> Task:
    """How a guard set's rows are asked and scored."""
    return guard.task if guard.task is not None else task


def examples_of(directory: Path, which: str) -> tuple[Example, ...]:
    """The examples of one split, or of `GUARD`, from an artifact of these stages.

    Raises:
        DataError: there are none: the artifact was made for a recipe that did not need this split.
    """
    examples = stored(directory, which)
    if not examples:
        raise DataError(f"the split {which!r} is empty", where="data.split", fix=f"give it rows: a larger data.split.{which}")
    return examples


def stored(directory: Path, which: str) -> tuple[Example, ...]:
    """As `examples_of`, where there may be none."""
    with (directory / f"{which}.jsonl").open(encoding="utf-8", newline="\n") as file:
        return tuple(Example.from_json(json.loads(line)) for line in file)


def _row_keys(task: Task) -> dict[str, Any]:
    """Those keys of a task that decide how rows are read and which are refused."""
    return task.model_dump(include={"prompt", "system", "labels", "metric"})
