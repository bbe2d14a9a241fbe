"""What the simulated model answers, and how sure it is.

A prompt of difficulty d is answered wrongly with probability

    p(d) = logistic(a + spread * (d - 1/2)),

where `a` is chosen so that the mean of p over all references is 1 - accuracy. At temperature 0 an answer is wrong where u < p(d), u being a
uniform number drawn from (seed, version, prompt): the same prompt always gets the same answer, another version errs elsewhere, though
more often on the same hard prompts. At temperature t, a share r = noise * min(t, 1) of the answers draws its u anew, so repeats differ and
the expected accuracy stays as stated. Log-probabilities are those of the very distribution that temperature 1 draws from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from workbench.errors import DataError
from workbench.simulator import chance
from workbench.simulator.references import Reference, normalised


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: what is said.
        known: whether there is a reference for the prompt.
        options: every text that could have been said, with its probability at temperature 1; they sum to 1.
    """

    text: str
    known: bool
    options: tuple[tuple[str, float], ...]


class Answers:
    """Draws answers.

    Args:
        references: by normalised prompt.
        seed: of all draws.
        spread: see the module.
        noise: see the module.
        fallback: the answer to a prompt that is not among the references.
    """

    def __init__(self, references: Mapping[str, Reference], *, seed: int, spread: float, noise: float, fallback: str) -> None:
        self._references, self._seed, self._spread, self._noise, self._fallback = references, seed, spread, noise, fallback
        self._repeats: Counter[tuple[str, str]] = Counter()
        self._intercept = cache(self._calibrated)

    def check(self, accuracy: float) -> None:
        """Raise `DataError` if there is a prompt to which no wrong answer is known, though some have to be wrong."""
        for prompt, reference in self._references.items():
            if not reference.wrong and accuracy < 1:
                fix = "give it a list `wrong`, or set every accuracy to 1"
                raise DataError(f"all references are the same, so there is no wrong answer to {prompt[:60]!r}", fix=fix)

    def wrong_probability(self, prompt: str, accuracy: float) -> float:
        """P(wrong) of a known prompt."""
        if accuracy in (0, 1):
            return 1 - accuracy
        return _logistic(self._intercept(accuracy) + self._spread * (self._references[normalised(prompt)].difficulty - 0.5))

    def draw(self, prompt: str, *, version: str, accuracy: float, temperature: float, seed: int | None, count: int) -> list[Answer]:
        """`count` answers to one request.

        Args:
            seed: the request's own; without one, each request for the same prompt draws anew.
        """
        key = normalised(prompt)
        reference = self._references.get(key)
        if reference is None:
            return [Answer(self._fallback, False, ((self._fallback, 1.0),))] * count
        wrong = self.wrong_probability(key, accuracy)
        mode = self._one(reference, wrong, version, key)
        options = self._options(reference, wrong, mode)
        if seed is None:
            repeat: tuple[str | int, ...] = ("repeat", self._repeats[version, key])
            self._repeats[version, key] += temperature > 0
        else:
            repeat = ("seed", seed)
        share = self._noise * min(temperature, 1.0)
        texts = []
        for choice in range(count):
            again = (version, key, *repeat, choice)
            drawn = chance.uniform(self._seed, "again", *again) < share
            texts.append(self._one(reference, wrong, *again) if drawn else mode)
        return [Answer(text, True, options) for text in texts]

    def _one(self, reference: Reference, wrong: float, *key: str | int) -> str:
        if chance.uniform(self._seed, "wrong", *key) >= wrong:
            return reference.right
        return reference.wrong[chance.pick(len(reference.wrong), self._seed, "which", *key)]

    def _options(self, reference: Reference, wrong: float, mode: str) -> tuple[tuple[str, float], ...]:
        each = wrong / len(reference.wrong) if reference.wrong else 0.0
        plain = {reference.right: 1 - wrong, **dict.fromkeys(reference.wrong, each)}
        return tuple((text, self._noise * share + (1 - self._noise) * (text == mode)) for text, share in plain.items())

    def _calibrated(self, accuracy: float) -> float:
        """The intercept for an accuracy strictly between 0 and 1, by bisection; the mean of p grows with it."""
        slopes = [self._spread * (reference.difficulty - 0.5) for reference in self._references.values()]
        target = (1 - accuracy) * len(slopes)
        reach = self._spread + abs(math.log(accuracy / (1 - accuracy))) + 1
        low, high = -reach, reach
        while high - low > 1e-9:
            middle = (low + high) / 2
            if sum(_logistic(middle + slope) for slope in slopes) < target:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
