"""What makes an example unusable, or a data set suspicious, for the task at hand."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from workbench.data.example import Example
from workbench.data.problems import excerpt
from workbench.errors import DataError
from workbench.recipe.schema import Task

if TYPE_CHECKING:
    from workbench.data.splits import SplitSet


def check_example(example: Example, task: Task) -> None:
    """Refuse a row that can neither be learned nor scored.

    Raises:
        DataError: an empty prompt or answer, a label outside `task.labels`, a reference that the metric cannot read.
    """
    if isinstance(example.prompt, str) and not example.prompt.strip():
        raise DataError("the prompt is empty", fix="fill it in or remove the row")
    if not isinstance(example.prompt, str) and not any(str(message.get("content", "")).strip() for message in example.prompt):
        raise DataError("every message of the prompt is empty", fix="fill one in or remove the row")
    if not example.references:
        raise DataError("there is no answer", fix="fill it in or remove the row")
    for reference in example.references:
        if not reference.strip():
            raise DataError("the answer is empty", fix="write a word that stands for it, such as none, or remove the row")
        _check_reference(reference, task)


def _check_reference(reference: str, task: Task) -> None:
    if task.labels is not None and reference not in task.labels:
        near = [label for label in task.labels if label.strip().casefold() == _bare(reference)]
        hint = f"it differs from the label {near[0]!r} in case, spacing or a decimal point; make them equal" if near else None
        raise DataError(f"the answer {excerpt(reference)} is not one of task.labels", fix=hint or "add the label or correct the row")
    if task.metric in ("json_f1", "json_exact"):
        try:
            json.loads(reference)
        except (ValueError, RecursionError) as error:
            fix = "write a JSON answer, or use another metric"
            raise DataError(f"the answer {excerpt(reference)} is not JSON, but the metric is {task.metric}", fix=fix) from error
    if task.metric == "numeric" and not re.search(r"\d", reference):
        raise DataError(f"the answer {excerpt(reference)} holds no number, but the metric is numeric", fix="correct the row or the metric")


def _bare(reference: str) -> str:
    """A label without case, surrounding space and the ".0" of a column of floats."""
    return reference.strip().casefold().removesuffix(".0")


def warnings(splits: SplitSet, task: Task) -> list[str]:
    """What a careful person would want to know before training; nothing here stops a run."""
    found = []
    report = splits.report
    if report.conflicts:
        example = report.conflict_examples[0]
        found.append(f"{report.conflicts} prompts stand in the data with different answers; the first was kept, e.g. {example}")
    learned = {reference for example in splits.train for reference in example.references[:1]}
    if task.labels is not None and splits.train:
        missing = [label for label in task.labels if label not in learned]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            found.append(f"{len(missing)} of {len(task.labels)} labels never occur in train: {names}")
    elif task.metric != "perplexity" and len(splits.train) > 1 and len(learned) == 1:
        found.append(f"every answer in train is the same: {excerpt(next(iter(learned)))}")
    return found
