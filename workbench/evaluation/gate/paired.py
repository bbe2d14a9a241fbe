"""Bounds on the difference of two paired proportions that hold at the size at hand, and the power that goes with them.

Of n examples, only_a were answered right by a alone and only_b by b alone; (only_a, only_b, rest) is trinomial. With the
difference d = p_a - p_b and the discordance psi = P(exactly one is right), those two have the probabilities (psi + d) / 2 and
(psi - d) / 2, so everything can be enumerated: only_a is binomial, and only_b is binomial given only_a.

Tango's score interval decides. It is asymptotic: at n = 50 and alpha = 0.1 it would pass a candidate that is worse by exactly
the margin up to 1.9 times as often as it says. So a difference is only ruled out if, beside that, the exact unconditional
test that orders the outcomes by the same statistic (Berger & Sidik 2003, Statistical Methods in Medical Research 12:91) gives
p <= 1.1 alpha at the worst discordance. For most tables of 200 and more examples that changes nothing.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from workbench.errors import EvaluationError
from workbench.evaluation.statistics import Interval, tango

#: How far beyond alpha the exact error may be before the score interval is widened.
TOLERANCE = 1.1
#: The largest n for which that is looked at; beyond it, the two agree.
EXACT_UP_TO = 5_000
POWER = 0.8

_NEGLIGIBLE = 1e-13  # outcomes of such a probability are left out of an enumeration
_DISCORDANCES = 48
_TIE = 1e-9

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@lru_cache(maxsize=4096)
def difference_bounds(only_a: int, only_b: int, n: int, alpha: float) -> Interval:
    """One-sided bounds of p_a - p_b, each with confidence 1 - alpha by itself; the interval's own `alpha` is therefore 2 alpha.

    Args:
        only_a, only_b: pairs of which only a, or only b, is right.
        n: pairs in all.
        alpha: one-sided, below 0.5.
    """
    low, high = _low(only_a, only_b, n, alpha), -_low(only_b, only_a, n, alpha)
    return Interval((only_a - only_b) / n, low, high, n, 2 * alpha)


def impossible(n: int, margin: float, alpha: float) -> bool:
    """Whether no table of n examples can pass: not even one without a single discordant pair.

    Its score bound is -z^2 / (n + z^2), which cannot rule out a margin of that size or less; widened as in `difference_bounds`.
    """
    critical = _critical(n, -margin, alpha)
    return not bool(_statistic(np.array(0), np.array(0), n, -margin) > critical)


def least_examples(margin: float, alpha: float) -> int:
    """The least n that is not `impossible`."""
    low, high = 0, 1
    while impossible(high, margin, alpha):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if impossible(middle, margin, alpha) else (low, middle)
    return high


def power(n: int, margin: float, alpha: float, *, difference: float = 0.0, discordance: float) -> float:
    """The probability of PASS, by exact enumeration.

    Args:
        n: examples.
        margin, alpha: of the gate.
        difference: true p_candidate - p_baseline.
        discordance: true share of examples that exactly one of them gets right; at least |difference|.

    Raises:
        EvaluationError: a discordance below |difference| or above 1.
    """
    if not abs(difference) <= discordance <= 1:
        raise EvaluationError(
            f"a difference of {difference:g} with a discordance of {discordance:g} cannot be",
            fix="give a discordance from |difference| to 1",
        )
    return _reach(_frontier(n, -margin, _critical(n, -margin, alpha)), n, difference, discordance)


def detectable(n: int, margin: float, alpha: float, *, discordance: float, power_wanted: float = POWER) -> float | None:
    """The minimum detectable effect: the least true difference that passes with probability `power_wanted`; None if none does.

    Found to 0.0001; a difference beyond `discordance` raises the discordance to its size. A value of -0.01 at a margin of 0.03:
    a candidate that is really worse by one point passes that often.
    """
    frontier = _frontier(n, -margin, _critical(n, -margin, alpha))

    def enough(difference: float) -> bool:
        return _reach(frontier, n, difference, max(discordance, abs(difference))) >= power_wanted

    worst, best = -margin, 1.0
    if not enough(best):
        return None
    while best - worst > 1e-4:
        middle = (worst + best) / 2
        worst, best = (worst, middle) if enough(middle) else (middle, best)
    return best


def examples_needed(margin: float, alpha: float, *, difference: float, discordance: float, power_wanted: float = POWER) -> int | None:
    """The number of examples, in all, with which this candidate passes with probability `power_wanted`; None: no number does.

    By exact enumeration up to EXACT_UP_TO, beyond by the normal approximation that the score test rests on.
    """
    if difference <= -margin:
        return None
    discordance = min(1.0, max(discordance, abs(difference), 1e-6))
    high = _normal_examples(margin, alpha, difference, discordance, power_wanted)
    if high > EXACT_UP_TO:
        return high

    def enough(n: int) -> bool:
        return power(n, margin, alpha, difference=difference, discordance=discordance) >= power_wanted

    low = 0
    while not enough(high):
        low, high = high, math.ceil(1.2 * high) + 1
        if high > EXACT_UP_TO:
            return high
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _normal_examples(margin: float, alpha: float, difference: float, discordance: float, wanted: float) -> int:
    from scipy.special import ndtri

    null = float(_variance(np.array((discordance + difference) / 2), np.array((discordance - difference) / 2), 1, -margin))
    sides = -ndtri(alpha) * math.sqrt(null) + ndtri(wanted) * math.sqrt(max(0.0, discordance - difference**2))
    return max(1, math.ceil(float(sides / (difference + margin)) ** 2))


def _low(only_a: int, only_b: int, n: int, alpha: float) -> float:
    bound = tango(only_a, only_b, n, 2 * alpha).low
    if n > EXACT_UP_TO or bound == -1 or _exact_p(only_a, only_b, n, bound) <= TOLERANCE * alpha:
        return bound
    ruled_out, inside, level = bound, bound, alpha
    while ruled_out > -1 and _exact_p(only_a, only_b, n, ruled_out) > TOLERANCE * alpha:
        level /= 2
        inside, ruled_out = ruled_out, tango(only_a, only_b, n, 2 * level).low
    while inside - ruled_out > 1e-5:
        middle = (inside + ruled_out) / 2
        if _exact_p(only_a, only_b, n, middle) > TOLERANCE * alpha:
            inside = middle
        else:
            ruled_out = middle
    return ruled_out


def _exact_p(only_a: int, only_b: int, n: int, difference: float) -> float:
    """The probability of an outcome that speaks as much or more for a true difference above `difference`, at its worst."""
    seen = float(_statistic(np.array(only_a), np.array(only_b), n, difference))
    return _worst_rejection(n, difference, seen - _TIE)


@lru_cache(maxsize=1024)
def _critical(n: int, difference: float, alpha: float) -> float:
    """The value that the statistic has to exceed to rule `difference` out."""
    from scipy.special import ndtri

    low = -float(ndtri(alpha))
    if n > EXACT_UP_TO or _worst_rejection(n, difference, low) <= TOLERANCE * alpha:
        return low
    high = low + 1
    while _worst_rejection(n, difference, high) > TOLERANCE * alpha:
        high += 1
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _worst_rejection(n, difference, middle) > TOLERANCE * alpha else (low, middle)
    return high


def _worst_rejection(n: int, difference: float, critical: float) -> float:
    """The largest probability, over the discordance, of a statistic above `critical` where the true difference is `difference`."""
    least = max(abs(difference), 1e-6)
    discordances: Array = np.geomspace(least, 1, _DISCORDANCES, dtype=np.float64)
    return float(np.max(_rejection(_frontier(n, difference, critical), n, difference, discordances)))


def _frontier(n: int, difference: float, critical: float) -> Counts:
    """For every only_a = 0..n the largest only_b whose statistic is above `critical`, or -1; the statistic falls with only_b."""
    only_a: Counts = np.arange(n + 1)
    passes: Counts = np.full(n + 1, -1)
    fails: Counts = n - only_a + 1
    while (fails - passes > 1).any():
        middle = (passes + fails) // 2
        above = (middle < 0) | (_statistic(only_a, np.maximum(middle, 0), n, difference) > critical)
        passes, fails = np.where(above, middle, passes), np.where(above, fails, middle)
    return passes


def _reach(frontier: Counts, n: int, difference: float, discordance: float) -> float:
    return float(_rejection(frontier, n, difference, np.array([discordance]))[0])


def _rejection(frontier: Counts, n: int, difference: float, discordance: Array) -> Array:
    """The probability of the outcomes up to the frontier, at each discordance."""
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    p_a = np.maximum(0.0, (discordance + difference) / 2)[:, None]
    p_b = np.maximum(0.0, (discordance - difference) / 2)[:, None]
    only_a = np.arange(n + 1)
    choices = gammaln(n + 1) - gammaln(only_a + 1) - gammaln(n - only_a + 1)
    law = np.where(frontier >= 0, np.exp(choices + xlogy(only_a, p_a) + xlog1py(n - only_a, -p_a)), 0.0)
    which, rows = np.nonzero(law > _NEGLIGIBLE)  # only there is the costly part worth its while
    share = np.minimum(1.0, p_b[which, 0] / np.maximum(1 - p_a[which, 0], 1e-300))
    given = bdtr(np.minimum(frontier, n - only_a)[rows].astype(np.float64), n - rows, share)
    return np.bincount(which, law[which, rows] * given, minlength=len(discordance)).astype(np.float64)


def _statistic(only_a: npt.NDArray[np.generic], only_b: npt.NDArray[np.generic], n: int, difference: float) -> Array:
    """Tango's statistic (see `statistics.tango`), for arrays of counts."""
    a, b = only_a.astype(np.float64), only_b.astype(np.float64)
    # The variance vanishes only at -1 and 1, and at 0 without discordant pairs; the floor keeps the sign there.
    return np.asarray((a - b - n * difference) / np.sqrt(np.maximum(_variance(a, b, n, difference), 1e-30)))


def _variance(a: Array, b: Array, n: int, difference: float) -> Array:
    linear = (2 * n - a + b) * difference - a - b
    constant = -b * difference * (1 - difference)
    q = (np.sqrt(np.maximum(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    return np.asarray(n * (2 * q + difference * (1 - difference)))
