"""Intervals against published values, against other implementations, and by simulated coverage.

A simulated coverage over R repetitions has a Monte-Carlo standard error of sqrt(0.95 * 0.05 / R): 0.0049 for R = 2,000, 0.0109
for R = 400 and 0.0154 for R = 200. Seeds are fixed, so the tests are deterministic; their bounds leave three standard errors
beside what the method itself is known to miss at these sizes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import EvaluationError
from workbench.evaluation import statistics
from workbench.evaluation.statistics import Interval, bootstrap_mean, mean_interval, paired_difference, recovery, tango

UNIT = st.floats(0, 1)
BINARY = st.sampled_from([0.0, 1.0])


def contains(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


# One mean ----------------------------------------------------------------------------------------------------------


def test_wilson_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        interval = mean_interval([1.0] * right + [0.0] * (n - right))
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
        assert interval.estimate == pytest.approx(right / n) and interval.n == n


def test_bca_agrees_with_scipys() -> None:
    values = np.random.default_rng(3).beta(6, 1, 80)
    ours = mean_interval(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(4)).confidence_interval
    # Both are Monte-Carlo quantiles: a few percent of the width apart.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * (theirs.high - theirs.low))


def test_equal_scores_are_no_proof() -> None:
    z = stats.norm.ppf(0.975)
    interval = mean_interval([0.5] * 100)
    assert interval.high - 0.5 == pytest.approx(0.5 * z**2 / (100 + z**2))
    assert contains(mean_interval([0.5]), 0.2)
    # With binary scores the same allowance is Wilson's and Tango's.
    assert mean_interval([0.0] * 100).high == pytest.approx(z**2 / (100 + z**2))
    assert paired_difference([0.5] * 100, [0.5] * 100).high == pytest.approx(paired_difference([1.0] * 100, [1.0] * 100).high)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_wilson_coverage(p: float) -> None:
    draws = np.random.default_rng(5).binomial(150, p, 2_000)
    intervals = {int(k): mean_interval([1.0] * int(k) + [0.0] * (150 - int(k))) for k in set(draws)}
    assert 0.93 < np.mean([contains(intervals[int(k)], p) for k in draws]) < 0.975


def test_bca_coverage_of_skewed_scores() -> None:
    rng = np.random.default_rng(6)
    covered = [contains(mean_interval(rng.beta(4, 0.8, 60)), 4 / 4.8) for _ in range(400)]
    assert 0.95 - 0.02 - 3 * 0.011 < np.mean(covered) < 0.95 + 3 * 0.011


# A paired difference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b", "n", "alpha", "low", "high"),
    [
        # Fagerland, Lydersen & Laake 2014 (Statistics in Medicine 33:2850): airway hyper-responsiveness, 21 children.
        (1, 7, 21, 0.05, -0.517, -0.026),
        # R's PropCIs::scoreci.mp(25, 28, 618, 0.90), whose estimand is the second minus the first.
        (28, 25, 618, 0.10, -0.0148, 0.0247),
    ],
)
def test_tango_published_values(only_a: int, only_b: int, n: int, alpha: float, low: float, high: float) -> None:
    interval = tango(only_a, only_b, n, alpha)
    digits = 5e-4 if n == 21 else 5e-5
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=digits)
    assert interval.estimate == (only_a - only_b) / n


def test_tango_without_discordant_pairs_is_z2_over_n_plus_z2() -> None:
    # T(d) = -sqrt(n d / (1 - d)) for d > 0 there, which is -z at d = z^2 / (n + z^2).
    z = stats.norm.ppf(0.975)
    for n in (1, 10, 1_000, 100_000):
        interval = tango(0, 0, n)
        assert (interval.low, interval.high) == pytest.approx((-(z**2) / (n + z**2), z**2 / (n + z**2)), rel=1e-6)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500), st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_tango_properties(only_a: int, only_b: int, agree: int, alpha: float) -> None:
    n = max(1, only_a + only_b + agree)
    interval = tango(only_a, only_b, n, alpha)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.low < interval.high
    mirrored = tango(only_b, only_a, n, alpha)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)
    narrower = tango(only_a, only_b, n, min(0.9, 2 * alpha))
    assert interval.low <= narrower.low and narrower.high <= interval.high
    # Its bounds decide as McNemar's test (no continuity correction) does about a difference of 0.
    if only_a + only_b:
        z = (only_a - only_b) / math.sqrt(only_a + only_b)
        critical = stats.norm.ppf(1 - alpha / 2)
        if abs(abs(z) - critical) > 1e-6:
            assert (abs(z) > critical) == (not contains(interval, 0.0))


@pytest.mark.parametrize(("p10", "p01", "n"), [(0.05, 0.05, 200), (0.10, 0.04, 100), (0.02, 0.01, 300), (0.3, 0.1, 40)])
def test_tango_coverage(p10: float, p01: float, n: int) -> None:
    draws = np.random.default_rng(7).multinomial(n, [p10, p01, 1 - p10 - p01], 2_000)
    counts, weights = np.unique(draws[:, :2], axis=0, return_counts=True)
    covered = [contains(tango(int(b), int(c), n), p10 - p01) for b, c in counts]
    assert 0.95 - 0.01 - 3 * 0.0049 < np.average(covered, weights=weights) < 0.975


@given(st.lists(st.tuples(BINARY, BINARY), min_size=1, max_size=60))
def test_binary_pairs_use_tango(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    interval = paired_difference(a, b)
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    assert interval == tango(only_a, only_b, len(pairs))
    assert interval.estimate == pytest.approx(np.mean(a) - np.mean(b))


def test_paired_bootstrap_coverage_and_gain_over_unpaired() -> None:
    rng = np.random.default_rng(8)
    covered, widths = [], []
    for _ in range(400):
        hard = rng.beta(5, 2, 80)
        a, b = np.clip(hard + rng.normal(0.02, 0.05, 80), 0, 1), np.clip(hard + rng.normal(0.0, 0.05, 80), 0, 1)
        interval = paired_difference(a, b)
        covered.append(interval.low <= 0.0197 <= interval.high)  # 0.0197: the mean difference after clipping, by 10^6 draws
        widths.append(interval.high - interval.low)
    assert 0.95 - 0.015 - 3 * 0.011 < np.mean(covered) < 0.95 + 3 * 0.011
    alone = mean_interval(a)
    assert np.mean(widths) < 0.6 * (alone.high - alone.low)


# A mean within limits, of clusters -----------------------------------------------------------------------------------


def test_bootstrap_of_single_values_is_that_of_the_mean() -> None:
    values = np.random.default_rng(11).beta(2, 2, 200)
    assert bootstrap_mean(values, (0, 1)) == mean_interval(values)
    assert bootstrap_mean(values, (0, 1), clusters=[str(n) for n in range(200)]).estimate == pytest.approx(values.mean())


def test_bootstrap_allows_for_what_it_did_not_see() -> None:
    z = stats.norm.ppf(0.975)
    unseen = z**2 / (100 + z**2)
    for values in ([0.0] * 100, [0.0] * 99 + [0.01]):
        interval = bootstrap_mean(values, (-1, 1))
        assert (interval.low, interval.high) == pytest.approx((-unseen, unseen), abs=3e-4)


def test_cluster_bootstrap_coverage() -> None:
    """Values of a cluster move together; drawn one by one the interval is far too short."""
    rng = np.random.default_rng(12)
    names = np.repeat(np.arange(60), 10)
    whole, single = [], []
    for _ in range(200):
        values = np.clip(np.repeat(rng.normal(0.1, 0.35, 60), 10) + rng.normal(0, 0.1, 600), -1, 1)
        whole.append(contains(bootstrap_mean(values, (-1, 1), clusters=names), 0.1))
        single.append(contains(bootstrap_mean(values, (-1, 1)), 0.1))
    assert 0.95 - 0.02 - 3 * 0.0154 < np.mean(whole) < 0.95 + 3 * 0.0154
    assert np.mean(single) < 0.7


def test_bootstrap_refuses_what_it_cannot_use() -> None:
    for values, message in (([2.0], "run from 2 to 2"), ([], "empty"), ([math.nan], "1 of values are missing")):
        with pytest.raises(EvaluationError, match=message):
            bootstrap_mean(values, (-1, 1))
    with pytest.raises(EvaluationError, match="1 clusters for 2 values"):
        bootstrap_mean([0.1, 0.2], (-1, 1), clusters=["a"])


# Recovery ----------------------------------------------------------------------------------------------------------


def test_recovery_of_equals_is_one_and_of_half_is_half() -> None:
    parent = np.random.default_rng(9).beta(5, 2, 50)
    assert recovery(parent, parent) == Interval(1.0, 1.0, 1.0, 50, 0.05)
    half = recovery(parent / 2, parent)
    assert (half.low, half.estimate, half.high) == pytest.approx((0.5, 0.5, 0.5))


def test_recovery_coverage() -> None:
    rng = np.random.default_rng(10)
    covered = []
    for _ in range(200):
        parent = (rng.random(200) < 0.8).astype(float)
        child = np.where(rng.random(200) < 0.9, parent, 1 - parent)
        covered.append(contains(recovery(child, parent), (0.8 * 0.9 + 0.2 * 0.1) / 0.8))
    assert 0.95 - 0.01 - 3 * 0.0154 < np.mean(covered) < 0.95 + 3 * 0.0154


@pytest.mark.parametrize("parent", [[0.0] * 50, [1.0] + [0.0] * 49])
def test_recovery_of_nothing_is_refused(parent: list[float]) -> None:
    with pytest.raises(EvaluationError, match=f"above 0 on only {int(sum(parent))} of 50 rows"):
        recovery([1.0] * 50, parent)


# All ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=30))
def test_bounds_are_ordered_and_in_range(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    for interval, lowest in ((mean_interval(a), 0.0), (paired_difference(a, b), -1.0)):
        assert lowest - 1e-9 <= interval.low <= interval.high <= 1 + 1e-9
        assert interval == (mean_interval(a) if lowest == 0.0 else paired_difference(a, b))


def test_large_tables_are_resampled_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(11).random(500)
    whole = mean_interval(values)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 12_345)
    assert mean_interval(values) == whole


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "empty"),
        ([0.5, float("nan")], r"1 of (the first )?scores are missing"),
        ([0.5, None], "1 of (the first )?scores are missing"),
        (["good"], "not all numbers"),
        ([[0.5]], "not a plain list"),
        ([1.5], "run from 1.5 to 1.5"),
        ([0.5, -0.5], "run from -0.5 to 0.5"),
    ],
)
def test_what_is_no_score_is_refused(scores: Any, message: str) -> None:
    for interval in (mean_interval, lambda s: paired_difference(s, s), lambda s: recovery(s, s)):
        with pytest.raises(EvaluationError, match=message):
            interval(scores)


def test_unequal_lengths_and_senseless_alphas_are_refused() -> None:
    for pair in (paired_difference, recovery):
        with pytest.raises(EvaluationError, match="2 and 1 scores cannot be paired"):
            pair([1, 0], [1])
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(EvaluationError, match="alpha is"):
            mean_interval([1, 0], alpha)
