"""Regex: a pattern is found in the output, and what it captures is the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError
from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class Regex:
    """Without a group, 1.0 when the pattern is found. With one, its first group must also equal the reference, outer space aside."""

    pattern: re.Pattern[str]

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        match = self.pattern.search(output)
        missing = Score(0.0, False, "the pattern is not found in the output")
        if not self.pattern.groups:
            return Score(1.0, True) if match else missing

        def compare(reference: str) -> Score:
            if match is None:
                return missing
            return Score(float((match[1] or "").strip() == reference.strip()), True)

        return best(references, compare)


def build(task: Task, base: Path) -> Regex:
    """Uses `task.pattern`, which the schema requires for this metric.

    Raises:
        EvaluationError: the pattern is not a regular expression.
    """
    try:
        return Regex(re.compile(task.pattern or ""))
    except (re.error, OverflowError, RecursionError) as error:
        raise EvaluationError(
            f"the pattern {task.pattern!r} is not a regular expression: {error}",
            where="task.pattern",
            fix="see the documentation of Python's `re` module",
        ) from error
