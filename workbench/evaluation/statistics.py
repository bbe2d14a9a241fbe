"""Intervals for what an evaluation claims. Scores are in [0, 1]; rows are independent; every bootstrap has a fixed seed.

All intervals are two-sided with coverage 1 - alpha: each bound alone is a one-sided bound at alpha / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.errors import EvaluationError

RESAMPLES = 5_000
SEED = 0
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap to about 64 MB

Scores = Sequence[float] | npt.NDArray[np.floating]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided interval of coverage 1 - alpha, from n rows (or pairs of rows)."""

    estimate: float
    low: float
    high: float
    n: int
    alpha: float


def mean_interval(scores: Scores, alpha: float = 0.05) -> Interval:
    """The mean score.

    Binary scores: Wilson's score interval (Wilson 1927). Others: BCa bootstrap (Efron 1987).

    Args:
        scores: shape (n,), each 0 to 1, none missing.

    Raises:
        EvaluationError: no scores, or scores that are missing or out of range.
    """
    values = _checked(scores, "scores")
    _check_alpha(alpha)
    if not _binary(values):
        return _bca(values, (0.0, 1.0), alpha)
    from scipy.stats import binomtest

    n = len(values)
    bounds = binomtest(round(values.sum()), n).proportion_ci(1 - alpha, method="wilson")
    return Interval(float(values.mean()), float(bounds.low), float(bounds.high), n, alpha)


def paired_difference(a: Scores, b: Scores, alpha: float = 0.05) -> Interval:
    """mean(a) - mean(b), where a[i] and b[i] are scores of the same example.

    Binary scores: Tango's score interval (Tango 1998, Statistics in Medicine 17:891). Others: BCa bootstrap of the
    differences.

    Args:
        a, b: shape (n,), each 0 to 1, none missing.

    Raises:
        EvaluationError: no scores, unequal lengths, or scores that are missing or out of range.
    """
    first, second = _paired(a, b)
    _check_alpha(alpha)
    if _binary(first) and _binary(second):
        only_a, only_b = int(np.sum(first > second)), int(np.sum(first < second))
        return tango(only_a, only_b, len(first), alpha)
    return _bca(first - second, (-1.0, 1.0), alpha)


def recovery(candidate: Scores, parent: Scores, alpha: float = 0.05) -> Interval:
    """mean(candidate) / mean(parent) on the same examples: the share of the parent's quality that is left.

    Percentile bootstrap over examples, both scores of an example drawn together.

    Args:
        candidate, parent: shape (n,), each 0 to 1, none missing.

    Raises:
        EvaluationError: as `paired_difference`; also where the parent's mean is, or could well be, 0.
    """
    top, bottom = _paired(candidate, parent)
    _check_alpha(alpha)
    n = len(top)

    def ratio(rows: npt.NDArray[np.intp]) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(top[rows].mean(axis=1) / bottom[rows].mean(axis=1))

    ratios = _resample(n, ratio)
    if not bottom.any() or not np.isfinite(ratios).all():
        raise EvaluationError(
            f"the parent scores above 0 on only {np.count_nonzero(bottom)} of {n} rows; a ratio to that means nothing",
            fix="compare by difference, or evaluate on more rows",
        )
    low, high = np.quantile(ratios, [alpha / 2, 1 - alpha / 2])
    return Interval(float(top.mean() / bottom.mean()), float(low), float(high), n, alpha)


def bootstrap_mean(
    values: Scores, limits: tuple[float, float], alpha: float = 0.05, *, clusters: Sequence[str] | npt.NDArray[np.intp] | None = None
) -> Interval:
    """The mean of values of any distribution within limits: BCa bootstrap, clusters drawn whole (Davison & Hinkley 1997, section 3.8).

    A bootstrap knows only what it saw. So no bound is nearer to the mean than where it would be if the share of unseen values
    that Wilson's bound on 0 of n leaves open, z^2 / (n + z^2), all lay at a limit; n counts clusters.

    Args:
        values: shape (n,), within the limits, none missing.
        limits: the least and the largest value there can be.
        clusters: shape (n,), values of one cluster are not independent; default: all are.

    Raises:
        EvaluationError: no values, or values that are missing or beyond the limits.
    """
    from scipy.special import ndtri

    _check_alpha(alpha)
    numbers = _numbers(values, "values")
    if numbers.min() < limits[0] or numbers.max() > limits[1]:
        raise EvaluationError(f"values run from {numbers.min():g} to {numbers.max():g}", fix=f"keep them in {limits[0]:g} to {limits[1]:g}")
    if clusters is not None and len(clusters) != len(numbers):
        raise EvaluationError(f"{len(clusters)} clusters for {len(numbers)} values", fix="name the cluster of every value")
    labels = np.arange(len(numbers)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = (np.bincount(labels, weights).astype(np.float64) for weights in (numbers, None))
    found = _bca(sums, limits, alpha, sizes)
    z = float(ndtri(1 - alpha / 2))
    unseen = z**2 / (len(sums) + z**2)
    mean = found.estimate
    low, high = mean - unseen * (mean - limits[0]), mean + unseen * (limits[1] - mean)
    return Interval(mean, max(limits[0], min(found.low, low)), min(limits[1], max(found.high, high)), len(numbers), alpha)


def tango(only_a: int, only_b: int, n: int, alpha: float = 0.05) -> Interval:
    """Tango's (1998) score interval for the difference of two paired proportions, p_a - p_b.

    It contains every difference d that the score test does not reject: with b = only_a and c = only_b,
    |T(d)| <= z where T(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))). There q, the restricted maximum-likelihood estimate
    of the probability of a pair that only b got right, is the larger root of 2n q^2 + B q + C, with the B and C computed
    below.

    Args:
        only_a, only_b: pairs of which only a, or only b, is right.
        n: pairs in all.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z = -float(ndtri(alpha / 2))
    estimate = (only_a - only_b) / n

    def statistic(difference: float) -> float:
        linear = (2 * n - only_a + only_b) * difference - only_a - only_b
        constant = -only_b * difference * (1 - difference)
        q = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * q + difference * (1 - difference))
        # The variance vanishes only at -1 and 1, and at 0 without discordant pairs; the floor keeps the sign there.
        return (only_a - only_b - n * difference) / math.sqrt(max(variance, 1e-30))

    low = -1.0 if estimate == -1 else brentq(lambda d: statistic(d) - z, -1.0, estimate, xtol=1e-12)
    high = 1.0 if estimate == 1 else brentq(lambda d: statistic(d) + z, estimate, 1.0, xtol=1e-12)
    return Interval(estimate, float(low), float(high), n, alpha)


def _bca(values: Array, limits: tuple[float, float], alpha: float, sizes: Array | None = None) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of a mean (Efron 1987, JASA 82:171).

    Written out because scipy's takes the jackknife in O(n^2); for a mean the acceleration has a closed form.
    Where all values are equal a bootstrap knows nothing. There the interval allows for the share of other values that
    Wilson's bound on 0 of n leaves open, z^2 / (n + z^2), all of it at one of the limits.

    Args:
        values: shape (n,), what is resampled.
        sizes: shape (n,), where each value is a sum over so many; the mean is then sum(values) / sum(sizes).
    """
    from scipy.special import ndtr, ndtri

    n = len(values)
    weights = np.ones(n) if sizes is None else sizes
    mean = float(values.sum() / weights.sum())
    z = ndtri([alpha / 2, 1 - alpha / 2])
    if np.ptp(values / weights) == 0:
        unseen = float(z[1] ** 2 / (n + z[1] ** 2))
        return Interval(mean, mean - unseen * (mean - limits[0]), mean + unseen * (limits[1] - mean), n, alpha)
    if sizes is None:
        means = _resample(n, lambda rows: values[rows].mean(axis=1))
    else:
        means = _resample(n, lambda rows: values[rows].sum(axis=1) / sizes[rows].sum(axis=1))
    influence = values - mean * weights
    acceleration = np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5)
    below = (np.sum(means < mean) + 0.5 * np.sum(means == mean)) / len(means)
    bias = ndtri(np.clip(below, 1 / len(means), 1 - 1 / len(means)))
    levels = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
    low, high = np.quantile(means, levels)
    return Interval(mean, float(low), float(high), n, alpha)


def _resample(n: int, statistic: Callable[[npt.NDArray[np.intp]], Array]) -> Array:
    """A statistic of RESAMPLES bootstrap samples; it maps row numbers of shape (k, n) to shape (k,)."""
    rng = np.random.default_rng(SEED)
    batch = max(1, _DRAWS_AT_ONCE // n)
    sizes = [min(batch, RESAMPLES - start) for start in range(0, RESAMPLES, batch)]
    return np.concatenate([statistic(rng.integers(0, n, size=(size, n))) for size in sizes])


def _binary(values: Array) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _paired(a: Scores, b: Scores) -> tuple[Array, Array]:
    first, second = _checked(a, "the first scores"), _checked(b, "the second scores")
    if len(first) != len(second):
        raise EvaluationError(f"{len(first)} and {len(second)} scores cannot be paired", fix="join them on example_id and repeat")
    return first, second


def _checked(scores: Scores, name: str) -> Array:
    values = _numbers(scores, name)
    if values.min() < 0 or values.max() > 1:
        raise EvaluationError(f"{name} run from {values.min():g} to {values.max():g}", fix="a score is from 0 to 1")
    return values


def _numbers(scores: Scores, name: str) -> Array:
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{name} are not all numbers", fix="leave unscored rows out first, and count them") from error
    if values.ndim != 1 or values.size == 0:
        raise EvaluationError(f"{name} are empty" if values.size == 0 else f"{name} are not a plain list", fix="score at least one row")
    if np.isnan(values).any():
        raise EvaluationError(f"{int(np.isnan(values).sum())} of {name} are missing", fix="leave unscored rows out first, and count them")
    return values


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise EvaluationError(f"alpha is {alpha:g}", fix="give the error rate between 0 and 1, such as 0.05")
