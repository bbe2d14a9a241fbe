"""chrF (Popovic 2015): character n-gram F-score, computed by sacrebleu with its defaults, divided by 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class Chrf:
    """Sentence-level chrF2 (six characters, no words); spacing is ignored."""

    library: Any

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:

        def compare(reference: str) -> Score:
            if not reference.strip():
                return Score(None, reason="the reference is empty")
            return Score(min(1.0, self.library.sentence_score(output, [reference]).score / 100))

        return best(references, compare)


def build(task: Task, base: Path) -> Chrf:
    """Needs nothing from the task."""
    from sacrebleu.metrics.chrf import CHRF

    return Chrf(CHRF())
