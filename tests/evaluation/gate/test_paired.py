"""Bounds and power by exact enumeration, written out a second time here: the trinomial law cell by cell."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gammaln, xlogy

from workbench.errors import EvaluationError
from workbench.evaluation.gate import paired
from workbench.evaluation.statistics import tango

SIZES, DISCORDANCES, ALPHAS = (50, 100, 300, 1000), (0.05, 0.15, 0.30), (0.05, 0.1)
MARGINS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.14)


@functools.lru_cache(maxsize=2)
def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (only_a, only_b) that n examples can give, where the two together are at most half of them or n is small."""
    most = n if n <= 300 else n // 2  # P(discordant pairs > n / 2) < 1e-30 at a discordance of 0.3
    only_a, only_b = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    kept = only_a + only_b <= most
    return only_a[kept], only_b[kept]


def probability(n: int, difference: float, discordance: float) -> np.ndarray:
    only_a, only_b = grid(n)
    rest = n - only_a - only_b
    counts = gammaln(n + 1) - gammaln(only_a + 1) - gammaln(only_b + 1) - gammaln(rest + 1)
    p_a, p_b = (discordance + difference) / 2, (discordance - difference) / 2
    return np.exp(counts + xlogy(only_a, p_a) + xlogy(only_b, p_b) + xlogy(rest, 1 - discordance))


def passes(n: int, margin: float, critical: float) -> np.ndarray:
    """Where Tango's statistic at -margin is above `critical`; the restricted estimate from its own quadratic equation."""
    only_a, only_b = grid(n)
    d = -margin
    linear = -only_a - only_b + (2 * n - only_a + only_b) * d
    q = (np.sqrt(np.maximum(0, linear**2 + 8 * n * only_b * d * (1 - d))) - linear) / (4 * n)
    return (only_a - only_b - n * d) / np.sqrt(np.maximum(1e-30, n * (2 * q + d * (1 - d)))) > critical


# The error rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", SIZES)
def test_a_candidate_worse_by_the_margin_passes_at_most_as_often_as_stated(n: int, alpha: float) -> None:
    for margin in MARGINS:
        passed = passes(n, margin, paired._critical(n, -margin, alpha))
        for discordance in DISCORDANCES:
            if discordance > margin:
                rate = probability(n, -margin, discordance)[passed].sum()
                assert rate <= 1.1 * alpha, (margin, discordance)


@pytest.mark.parametrize(("n", "alpha"), [(50, 0.05), (50, 0.1), (100, 0.05), (100, 0.1)])
def test_nor_at_margins_and_discordances_where_the_score_interval_alone_errs_more_often(n: int, alpha: float) -> None:
    """At n = 50, alpha = 0.1, margin 0.0325 and discordance 0.05 Tango's interval by itself passes 0.141 of them."""
    alone, ours = [], []
    for margin in np.arange(0.005, 0.15, 0.005 if n == 100 else 0.0025):
        plain, widened = (passes(n, margin, z) for z in (stats.norm.ppf(1 - alpha), paired._critical(n, -margin, alpha)))
        for discordance in (margin, 1.02 * margin, 0.05, 0.15, 0.3):
            if discordance >= margin:
                law = probability(n, -margin, discordance)
                alone.append(law[plain].sum())
                ours.append(law[widened].sum())
    assert max(alone) > 1.12 * alpha
    assert max(ours) <= 1.1 * alpha * 1.001  # the discordances that are searched are a grid
    assert max(ours) > 0.8 * alpha


@pytest.mark.parametrize(("n", "margin", "alpha"), [(50, 0.0325, 0.1), (50, 0.03, 0.05), (100, 0.05, 0.1), (300, 0.03, 0.05)])
def test_the_bound_and_the_critical_value_decide_alike(n: int, margin: float, alpha: float) -> None:
    critical = paired._critical(n, -margin, alpha)
    frontier = paired._frontier(n, -margin, critical)
    seen = set()
    for only_a in (0, 1, 2, 5, 9):
        for only_b in range(max(0, frontier[only_a] - 1), min(n - only_a, frontier[only_a] + 2) + 1):
            passed = paired.difference_bounds(only_a, only_b, n, alpha).low > -margin
            assert passed == (only_b <= frontier[only_a]), (only_a, only_b)
            seen.add(passed)
    assert seen == {True, False}


def test_a_false_fail_is_as_rare() -> None:
    n, margin, discordance, alpha = 50, 0.0325, 0.05, 0.1
    only_a, only_b = grid(n)
    law = probability(n, -margin, discordance)
    failed = [
        chance
        for a, b, chance in zip(only_a.tolist(), only_b.tolist(), law, strict=True)
        if chance > 1e-5 and paired.difference_bounds(a, b, n, alpha).high < -margin
    ]
    assert 0 < sum(failed) <= 1.1 * alpha


# The bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b", "n", "alpha", "low", "high"),
    [
        # Tango 1998 (Statistics in Medicine 17:891), as in the tests of the R package ratesci, function pairbinci:
        # a cross-over trial, 2x2 table 4, 9, 3, 16 at 95%, and two disinfecting systems for contact lenses, 43, 0, 1, 0 at 90%.
        (9, 3, 32, 0.05, -0.027, 0.390),
        (0, 1, 44, 0.10, -0.096, 0.037),
    ],
)
def test_tangos_own_examples(only_a: int, only_b: int, n: int, alpha: float, low: float, high: float) -> None:
    interval = tango(only_a, only_b, n, alpha)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


def test_most_tables_keep_tangos_bounds() -> None:
    for only_a, only_b, n in ((30, 40, 1000), (8, 9, 300), (60, 75, 1000), (10, 14, 200)):
        ours, plain = paired.difference_bounds(only_a, only_b, n, 0.05), tango(only_a, only_b, n, 0.1)
        assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), abs=1e-12)


def test_without_discordance_the_bound_is_nearly_the_exact_one() -> None:
    """The exact bound on 0 of n is 1 - alpha^(1/n); the tolerance lets it be that of 1.1 alpha."""
    for n in (20, 50, 100, 300):
        assert -paired.difference_bounds(0, 0, n, 0.05).low == pytest.approx(1 - 0.055 ** (1 / n), rel=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 100), st.sampled_from([0.01, 0.05, 0.1]))
def test_bounds_are_ordered_symmetric_and_no_narrower_than_tangos(only_a: int, only_b: int, agree: int, alpha: float) -> None:
    n = max(1, only_a + only_b + agree)
    ours, plain = paired.difference_bounds(only_a, only_b, n, alpha), tango(only_a, only_b, n, 2 * alpha)
    assert -1 <= ours.low <= plain.low + 1e-12 and plain.high - 1e-12 <= ours.high <= 1
    assert ours.low <= ours.estimate <= ours.high
    mirrored = paired.difference_bounds(only_b, only_a, n, alpha)
    assert (mirrored.low, mirrored.high) == (-ours.high, -ours.low)
    looser = paired.difference_bounds(only_a, only_b, n, 1.5 * alpha)
    assert ours.low <= looser.low + 2e-5 and looser.high <= ours.high + 2e-5


# Power, and what is possible ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_power_is_that_of_the_enumeration(n: int) -> None:
    for margin, difference, discordance, alpha in ((0.05, 0.0, 0.1, 0.05), (0.03, 0.01, 0.05, 0.1), (0.1, -0.02, 0.3, 0.05)):
        expected = probability(n, difference, discordance)[passes(n, margin, paired._critical(n, -margin, alpha))].sum()
        assert paired.power(n, margin, alpha, difference=difference, discordance=discordance) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("margin", "difference", "discordance"), [(0.05, 0.0, 0.1), (0.1, -0.02, 0.3), (0.1, 0.0, 0.15), (0.05, 0.02, 0.05), (0.06, 0.0, 0.15)]
)
def test_the_number_needed_has_the_power(margin: float, difference: float, discordance: float) -> None:
    n = paired.examples_needed(margin, 0.05, difference=difference, discordance=discordance)
    assert n is not None and n < 1000
    law = probability(n, difference, discordance)
    power = law[passes(n, margin, paired._critical(n, -margin, 0.05))].sum()
    assert 0.8 <= power < 0.84  # the least such n; with few discordant pairs the power jumps


def test_the_number_needed_for_rare_differences_is_found_beyond_the_exact_range() -> None:
    n = paired.examples_needed(0.01, 0.05, difference=0.0, discordance=0.2)
    assert n is not None and n > paired.EXACT_UP_TO
    assert paired.power(n, 0.01, 0.05, discordance=0.2) == pytest.approx(0.8, abs=0.03)
    assert paired.examples_needed(0.03, 0.05, difference=-0.03, discordance=0.1) is None


def test_the_detectable_effect_has_the_power() -> None:
    effect = paired.detectable(300, 0.05, 0.05, discordance=0.1)
    assert effect is not None and -0.05 < effect < 0
    law = probability(300, effect, 0.1)
    assert law[passes(300, 0.05, paired._critical(300, -0.05, 0.05))].sum() == pytest.approx(0.8, abs=0.03)
    few = paired.detectable(20, 0.03, 0.05, discordance=0.01)
    assert few is not None and few > 0  # so few can only pass what is better
    assert paired.detectable(1, 0.03, 0.05, discordance=0.01) is None
    assert paired.detectable(1000, 0.3, 0.05, discordance=0.01) == pytest.approx(-0.265, abs=0.005)
    more = paired.detectable(600, 0.05, 0.05, discordance=0.1)
    assert more is not None and more < effect


def test_what_cannot_pass_is_known_beforehand() -> None:
    assert paired.impossible(20, 0.03, 0.05)
    z = stats.norm.ppf(0.95)
    for margin in (0.02, 0.05, 0.1):
        least = paired.least_examples(margin, 0.05)
        assert not paired.impossible(least, margin, 0.05) and paired.impossible(least - 1, margin, 0.05)
        by_score = z**2 * (1 - margin) / margin  # where z^2 / (n + z^2) = margin
        assert by_score <= least <= 1.15 * by_score + 1
        assert paired.power(least - 1, margin, 0.05, discordance=1e-9) == pytest.approx(0, abs=1e-6)
        assert paired.power(least, margin, 0.05, discordance=1e-9) == pytest.approx(1, abs=1e-6)


def test_an_impossible_truth_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"a difference of 0\.2 with a discordance of 0\.1"):
        paired.power(100, 0.05, 0.05, difference=0.2, discordance=0.1)
