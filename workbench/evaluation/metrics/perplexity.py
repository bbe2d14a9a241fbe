"""Perplexity: how likely the model finds the reference, rather than what it writes.

The one metric that needs no output: whoever runs the model takes the mean log-probability of the reference's tokens
and turns it into a score with `perplexity_score`. Text alone cannot be scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.score import Score
from workbench.recipe.schema import Task


def perplexity_score(logprob_mean: float) -> float:
    """1 / perplexity = exp(mean log-probability): the geometric mean probability of a token, 0 to 1.

    Args:
        logprob_mean: mean natural log-probability of the reference's tokens, at most 0.
    """
    return min(1.0, math.exp(logprob_mean))


@dataclass(frozen=True)
class Perplexity:
    """Leaves every text unscored; see the module."""

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        return Score(None, reason="perplexity is computed from log-probabilities, not from the output")


def build(task: Task, base: Path) -> Perplexity:
    """Needs nothing from the task."""
    return Perplexity()
