"""Label: the output is the right one of a closed set of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class Label:
    """1.0 when output and reference are the same label; outer space is ignored, nothing else."""

    labels: frozenset[str]

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        answer = output.strip()
        valid = answer in self.labels
        reason = None if valid else f"the output {_short(answer)} is not one of the {len(self.labels)} labels"

        def compare(reference: str) -> Score:
            wanted = reference.strip()
            if wanted not in self.labels:
                return Score(None, reason=f"the reference {_short(wanted)} is not one of the {len(self.labels)} labels")
            return Score(float(answer == wanted), valid, reason)

        return best(references, compare)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def build(task: Task, base: Path) -> Label:
    """Uses `task.labels`, which the schema requires for this metric."""
    return Label(frozenset(label.strip() for label in task.labels or ()))
