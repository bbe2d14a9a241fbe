"""ROUGE-L F1 (Lin 2004), computed by Google's `rouge-score` without stemming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class RougeL:
    """F1 of the longest common subsequence of words. The library knows only words of a-z and 0-9; for other scripts use `chrf`."""

    library: Any

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:

        def compare(reference: str) -> Score:
            if not any(c.isascii() and c.isalnum() for c in reference):
                return Score(None, reason="the reference has no word of a-z or 0-9, the only ones ROUGE looks at")
            return Score(float(self.library.score(reference, output)["rougeL"].fmeasure))

        return best(references, compare)


def build(task: Task, base: Path) -> RougeL:
    """Needs nothing from the task."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeL(RougeScorer(["rougeL"]))
