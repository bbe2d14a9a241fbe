"""What every metric gives back, and how several references become one score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Score:
    """How good one output is.

    Attributes:
        value: 0 (wrong) to 1 (right); None when the example cannot be scored, which is neither.
        valid: whether the output has the form the task asks for (a known label, a number, JSON that satisfies its
            schema); None for metrics that ask for no form, and for unscored examples.
        reason: why the example is unscored or the output invalid; else None.
    """

    value: float | None
    valid: bool | None = None
    reason: str | None = None


class Scorer(Protocol):
    """One metric, ready to score outputs."""

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        """Compare one output with the accepted answers.

        Args:
            output: the generated text, as decoded.
            references: accepted answers; any of them is right.
            metadata: what came with the example's row.
        """
        ...


def best(references: Sequence[str], compare: Callable[[str], Score]) -> Score:
    """The best score over all references.

    A reference that cannot be used makes the example unscored: had it been usable, the output might have matched it.
    """
    if not references:
        return Score(None, reason="no reference answer")
    scores = [compare(reference) for reference in references]
    unusable = next((score for score in scores if score.value is None), None)
    return unusable or max(scores, key=lambda score: score.value or 0.0)
