"""What decides a score: the keys of a task, and the content of the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.digest import file_digest
from workbench.recipe.schema import Task


def scoring_section(task: Task, base: Path) -> dict[str, Any]:
    """Everything about a task that decides answers and scores, for a stage's section; the same wherever the recipe lies.

    Args:
        base: the recipe's folder, where the paths of the task start.
    """
    section = task.model_dump(exclude={"json_schema", "function"})
    if task.json_schema is not None:
        section["json_schema"] = _digest(base / Path(task.json_schema).expanduser())
    if task.function is not None:
        module, _, name = task.function.rpartition(":")
        digests = [_digest(base / file) for file in (module, module.replace(".", "/") + ".py")]
        section["function"] = [next((one for one in digests if one), module), name]  # an installed module counts by its name
    return section


def _digest(file: Path) -> str | None:
    return file_digest(file) if file.is_file() else None
