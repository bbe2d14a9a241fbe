"""Contains: a reference occurs somewhere in the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.normalise import normalise
from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class Contains:
    """1.0 when the reference is a substring of the output, after `normalise` or else as it stands.

    Word boundaries are not looked at (not every script has them): "no" is found in "know". Use `regex` where that matters.
    """

    normalize: bool

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        clean = normalise if self.normalize else str.strip
        answer = clean(output)

        def compare(reference: str) -> Score:
            wanted = clean(reference)
            if not wanted:
                return Score(None, reason="the reference is empty, and every output contains that")
            return Score(float(wanted in answer))

        return best(references, compare)


def build(task: Task, base: Path) -> Contains:
    """Uses `task.normalize`."""
    return Contains(task.normalize)
