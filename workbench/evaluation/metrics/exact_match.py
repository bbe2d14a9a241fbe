"""Exact match: the output is one of the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.normalise import normalise
from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class ExactMatch:
    """1.0 when output and reference are equal, after `normalise` or else after stripping outer space."""

    normalize: bool

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        clean = normalise if self.normalize else str.strip
        answer = clean(output)
        return best(references, lambda reference: Score(float(answer == clean(reference))))


def build(task: Task, base: Path) -> ExactMatch:
    """Uses `task.normalize`."""
    return ExactMatch(task.normalize)
