"""What a model said to one prompt, and what it thought of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """What a model said to one prompt.

    Attributes:
        text: the answer; None where none was produced.
        tokens: how many tokens it has.
        logprobs: natural log-probability of each of them.
        margin: smallest difference between best and second best log-probability: over the tokens, or between labels.
        label_prob: probability of the chosen label among all labels; None for generated answers.
    """

    text: str | None
    tokens: int
    logprobs: tuple[float, ...]
    margin: float | None
    label_prob: float | None = None
