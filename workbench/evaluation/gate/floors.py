"""What has to hold beside the comparison: score, guard sets, latency, size and cost, each judged with its own one-sided bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workbench.evaluation.gate.pairing import Pairs
from workbench.evaluation.statistics import bootstrap_mean
from workbench.recipe.schema.gate import Floors

Array = npt.NDArray[np.float64]
QUANTILES = {"latency_p50_s": 0.5, "latency_p95_s": 0.95, "latency_p99_s": 0.99}


@dataclass(frozen=True)
class Floor:
    """One requirement, judged.

    Attributes:
        name: as in the recipe; a guard set is `guard NAME`.
        verdict: PASS where even the worse of the two bounds keeps the limit, FAIL where not even the better one does, else INCONCLUSIVE.
        limit: the required value.
        value: what was measured; None: nothing was. A latency of failed requests is infinite, and written as None with `method` saying so.
        low, high: one-sided bounds of the true value; None: unbounded, or not an estimate.
        n: rows it was measured on.
        method: how, in words.
    """

    name: str
    verdict: str
    limit: float
    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str


def judge(
    floors: Floors,
    guards: Mapping[str, tuple[pa.Table, float]],
    pairs: Pairs,
    candidate: pa.Table,
    *,
    size_bytes: int | None,
    unscored: str,
    alpha: float,
) -> tuple[Floor, ...]:
    """Judge all that are asked for, each at `alpha`.

    Args:
        floors: the limits.
        guards: outcomes of the candidate on each guard set, and the least mean score there.
        pairs: the candidate's scores; unscored rows counted as the policy says.
        candidate: the candidate's outcomes, for latency and cost.
        size_bytes: of the weights on disk; None: unknown.
        unscored: policy for the rows of guard sets without a score.
        alpha: one-sided.
    """
    found = []
    if floors.score is not None:
        found.append(_score("score", floors.score, pairs.candidate, pairs.clusters, alpha))
    for name, (table, least) in guards.items():
        scores = table["score"].to_pylist()
        counted = [score for score in scores if score is not None] if unscored == "exclude" else [score or 0.0 for score in scores]
        found.append(_score(f"guard {name}", least, np.array(counted, dtype=np.float64), None, alpha))
    for name, quantile in QUANTILES.items():
        if (limit := getattr(floors, name)) is not None:
            found.append(_latency(name, limit, candidate, quantile, alpha))
    if floors.size_mb is not None:
        found.append(_size(floors.size_mb, size_bytes))
    if floors.cost_per_1k_usd is not None:
        found.append(_cost(floors.cost_per_1k_usd, candidate, alpha))
    return tuple(found)


def examples_to_bound(quantile: float, alpha: float) -> int:
    """The least number of values for which `quantile_bounds` gives a finite upper bound: all at or below it has probability quantile^n."""
    return math.ceil(math.log(alpha) / math.log(quantile))


def quantile_bounds(values: Array, quantile: float, alpha: float) -> tuple[float, float]:
    """One-sided bounds of a quantile from order statistics, each with confidence 1 - alpha or more whatever the distribution.

    The number of values at or below the true quantile is binomial (David & Nagaraja 2003, Order Statistics, section 7.1). Without
    enough values a bound is infinite.

    Args:
        values: shape (n,), independent.
        quantile: between 0 and 1.
    """
    from scipy.stats import binom

    ordered, n = np.sort(values), len(values)
    below = binom.cdf(np.arange(n), n, quantile)  # entry k: probability of at most k values below the quantile
    low, high = np.flatnonzero(below <= alpha), np.flatnonzero(below >= 1 - alpha)
    return (float(ordered[low[-1]]) if len(low) else -math.inf, float(ordered[high[0]]) if len(high) else math.inf)


def _score(name: str, least: float, scores: Array, clusters: Sequence[str] | None, alpha: float) -> Floor:
    from scipy.stats import binomtest

    n = len(scores)
    if n == 0:
        return Floor(name, "INCONCLUSIVE", least, None, None, None, 0, "no row has a score")
    if clusters is None and np.isin(scores, (0.0, 1.0)).all():
        test = binomtest(round(float(scores.sum())), n)
        bounds = test.proportion_ci(1 - 2 * alpha, method="exact")
        low, high, method = float(bounds.low), float(bounds.high), "exact binomial bounds (Clopper-Pearson)"
    else:
        interval = bootstrap_mean(scores, (0.0, 1.0), 2 * alpha, clusters=clusters)
        low, high, method = interval.low, interval.high, "BCa bootstrap" if clusters is None else "cluster bootstrap"
    verdict = "PASS" if low >= least else "FAIL" if high < least else "INCONCLUSIVE"
    return Floor(name, verdict, least, float(scores.mean()), low, high, n, method)


def _latency(name: str, limit: float, table: pa.Table, quantile: float, alpha: float) -> Floor:
    rows = list(zip(table["latency_s"].to_pylist(), table["status"].to_pylist(), strict=True))
    failed = sum(seconds is None and status == "failed" for seconds, status in rows)
    values = np.array([seconds for seconds, _ in rows if seconds is not None] + [math.inf] * failed)
    if len(values) == failed:
        return Floor(name, "INCONCLUSIVE", limit, None, None, None, 0, "no row has a latency")
    low, high = quantile_bounds(values, quantile, alpha)
    method = "order-statistic bounds"
    if failed:
        method += f"; {failed} failed requests count as endless"
    if math.isinf(high) and not failed:
        method += f"; an upper bound needs {math.ceil(math.log(alpha) / math.log(quantile))} rows"
    value = float(np.quantile(values, quantile, method="higher"))
    verdict = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
    return Floor(name, verdict, limit, _finite(value), _finite(low), _finite(high), len(values), method)


def _size(limit: float, size_bytes: int | None) -> Floor:
    if size_bytes is None:
        return Floor("size_mb", "INCONCLUSIVE", limit, None, None, None, 0, "the size is not known")
    size = size_bytes / 1e6
    return Floor("size_mb", "PASS" if size <= limit else "FAIL", limit, size, size, size, 1, "measured on disk")


def _cost(limit: float, table: pa.Table, alpha: float) -> Floor:
    known = np.array([cost for cost in table["cost_usd"].to_pylist() if cost is not None], dtype=np.float64)
    name = "cost_per_1k_usd"
    if not len(known):
        return Floor(name, "INCONCLUSIVE", limit, None, None, None, 0, "no row has a cost")
    # What a request can cost at most is not known; the dearest that was seen stands for it.
    interval = bootstrap_mean(1000 * known, (0.0, float(1000 * known.max())), 2 * alpha)
    missing = table.num_rows - len(known)
    method = "BCa bootstrap of the mean" + (f"; {missing} rows have no cost" if missing else "")
    verdict = "PASS" if interval.high <= limit else "FAIL" if interval.low > limit else "INCONCLUSIVE"
    return Floor(name, verdict, limit, interval.estimate, interval.low, interval.high, len(known), method)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
