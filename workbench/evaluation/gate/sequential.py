"""Judging after every example: bounds on the paired difference that hold at all times at once, so that one may stop at any.

A bet against "the true difference is at most d": of a wealth of 1, the share f is staked on every difference x in turn, and
the wealth becomes the product of 1 + f (x - d) / (1 + d), which stays nonnegative. If the claim is true it cannot be expected
to grow, whatever the stopping rule, and reaches 1 / alpha with probability alpha at most (Ville 1939). What wealth has refuted
lies outside a confidence sequence (Waudby-Smith & Ramdas 2024, JRSS B 86:1, section 4, one-sided). Here the wealth is divided
evenly among fixed shares f beforehand, their grid Kelly with one grid for all: it needs no tuning, and depends on
the examples seen, not on their order.

The examples have to be independent, and in an order that does not look at the outcomes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.evaluation.statistics import Interval

_STAKES = np.geomspace(0.005, 0.95, 24)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stop:
    """Where a sequence was decided.

    Attributes:
        verdict: PASS, FAIL or INCONCLUSIVE.
        at: number of examples seen when it was decided, or all of them.
        bounds: one-sided bounds of the difference at that point, each valid at all times with confidence 1 - alpha.
    """

    verdict: str
    at: int
    bounds: Interval


def judge(difference: Array, margin: float, alpha: float) -> Stop:
    """Follow the differences until one side is refuted.

    Args:
        difference: candidate's score minus baseline's, shape (n,), each -1 to 1, in the order in which they are looked at.
        margin, alpha: of the gate.
    """
    goal = math.log(1 / alpha)
    passed, failed = (np.flatnonzero(log_wealth(sign * difference, -sign * margin) >= goal) for sign in (1, -1))
    first_pass, first_fail = (int(found[0]) if len(found) else len(difference) for found in (passed, failed))
    at = min(first_pass, first_fail, len(difference) - 1) + 1
    verdict = "INCONCLUSIVE" if first_pass == first_fail else "PASS" if first_pass < first_fail else "FAIL"
    seen = difference[:at]
    return Stop(verdict, at, Interval(float(seen.mean()), _low(seen, goal), -_low(-seen, goal), at, 2 * alpha))


def log_wealth(difference: Array, claimed: float) -> Array:
    """Natural logarithm of the wealth after each example of a bet against "the true difference is at most `claimed`".

    Args:
        difference: shape (..., n), each -1 to 1.
        claimed: above -1.
    """
    from scipy.special import logsumexp

    gain = (difference - claimed) / (1 + claimed)
    return np.asarray(logsumexp(np.cumsum(np.log1p(_STAKES[:, None] * gain[..., None, :]), axis=-1), axis=-2) - math.log(len(_STAKES)))


def _low(seen: Array, goal: float) -> float:
    """The least difference that is not refuted; the wealth falls with the difference that is claimed."""
    values, counts = np.unique(seen, return_counts=True)

    def wealth(claimed: float) -> float:
        gain = (values - claimed) / (1 + claimed)
        logs = np.log1p(np.outer(_STAKES, gain)) @ counts
        return float(np.logaddexp.reduce(logs) - math.log(len(_STAKES)))

    refuted, open_ = -1.0, float(seen.mean())
    while open_ - refuted > 1e-9:
        middle = (refuted + open_) / 2
        refuted, open_ = (middle, open_) if wealth(middle) >= goal else (refuted, middle)
    return refuted


def examples_needed(difference: Array, margin: float, alpha: float) -> int | None:
    """The number of examples, in all, at which the wealth is expected to suffice if all differences are like these; None: never."""
    gain = (difference + margin) / (1 - margin)
    growth = float(np.max(np.log1p(np.outer(_STAKES, gain)).mean(axis=1)))
    return math.ceil((math.log(1 / alpha) + math.log(len(_STAKES))) / growth) if growth > 0 else None


def impossible(n: int, margin: float, alpha: float) -> bool:
    """Whether not even n examples without any difference would be enough to pass."""
    return float(log_wealth(np.zeros(n), -margin)[-1]) < math.log(1 / alpha)


def least_examples(margin: float, alpha: float) -> int:
    """The least number of examples that could pass."""
    n = 1
    while impossible(n, margin, alpha):
        n *= 2
    return int(np.argmax(log_wealth(np.zeros(n), -margin) >= math.log(1 / alpha))) + 1
