"""Stage `data`: the recipe's rows, checked, deduplicated and divided, beside the guard sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.data import checks
from workbench.data.example import Example
from workbench.data.readers import read
from workbench.data.splits import SplitSet, contamination, distinct, divide
from workbench.progress import say
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Guard, Split, Task
from workbench.sources.fetch import Materialised
from workbench.stages.stage import Stage, Work


def data_stage(loaded: Loaded, source: Materialised, held_out: Mapping[Split, Materialised], guards: Mapping[str, Materialised]) -> Stage:
    """The stage that reads and divides the data of a recipe.

    Args:
        source: the file of `data.source`.
        held_out: the files of `data.held_out`.
        guards: the file of each guard set, by name.
    """
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        splits, guard_sets = read_data(loaded, source, held_out, guards)
        for warning in checks.warnings(splits, recipe.task):
            say(f"  warning: {warning}")
        splits.write(work.staging)
        (work.staging / "guards").mkdir()
        for name, examples in guard_sets.items():
            lines = (json.dumps(example.to_json(), ensure_ascii=False) + "\n" for example in examples)
            (work.staging / "guards" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        return {**splits.report.to_json(), "guards": {name: len(rows) for name, rows in guard_sets.items()}, "origin": source.origin}

    section = {
        "data": recipe.data.model_dump(exclude={"source", "held_out"}),
        "task": _row_keys(recipe.task),
        "source": source.digest,
        "held_out": {split: file.digest for split, file in held_out.items()},
        "guards": [
            {
                "guard": guard.model_dump(include={"name", "format", "columns", "limit"}),
                "task": _row_keys(guard_task(guard, recipe.task)),
                "source": guards[guard.name].digest,
            }
            for guard in recipe.evaluate.guards
        ],
        "needed": needed_splits(loaded),
    }
    return Stage("data", 1, section, make)


def read_data(
    loaded: Loaded, source: Materialised, held_out: Mapping[Split, Materialised], guards: Mapping[str, Materialised]
) -> tuple[SplitSet, dict[str, tuple[Example, ...]]]:
    """The splits and the guard sets of a recipe.

    Raises:
        DataError: bad rows, an empty split, or a prompt that stands in two sets that must be disjoint.
    """
    recipe, data = loaded.recipe, loaded.recipe.data
    rows = read(source.path, format=data.format, columns=data.columns, task=recipe.task)
    others: dict[Split, list[Example]] = {
        split: read(file.path, format=data.format, columns=data.columns, task=recipe.task) for split, file in held_out.items()
    }
    splits = divide(rows, others, data.split, data.limit, needed=needed_splits(loaded))
    sets: dict[str, tuple[Example, ...]] = {}
    for guard in recipe.evaluate.guards:
        examples = distinct(
            read(guards[guard.name].path, format=guard.format, columns=guard.columns, task=guard_task(guard, recipe.task))
        ).examples
        contamination({"train": splits.train, f"guard {guard.name!r}": examples})
        sets[guard.name] = examples[: guard.limit]
    return splits, sets


def needed_splits(loaded: Loaded) -> tuple[Split, ...]:
    """Splits that must not be empty for this recipe to run."""
    recipe = loaded.recipe
    needed: list[Split] = ["train", "validation"] if recipe.train is not None else []
    return (*needed, recipe.evaluate.split) if recipe.evaluate.split not in needed else tuple(needed)


def guard_task(guard: Guard, task: Task) -> Task:
    """How a guard set's rows are asked and scored."""
    return guard.task if guard.task is not None else task


def examples_of(directory: Path, which: str) -> tuple[Example, ...]:
    """The examples of one split, or of `guards/<name>`, from the artifact of this stage."""
    with (directory / f"{which}.jsonl").open(encoding="utf-8", newline="\n") as file:
        return tuple(Example.from_json(json.loads(line)) for line in file)


def _row_keys(task: Task) -> dict[str, Any]:
    """Those keys of a task that decide how rows are read and which are refused."""
    return task.model_dump(include={"prompt", "system", "labels", "metric"})
