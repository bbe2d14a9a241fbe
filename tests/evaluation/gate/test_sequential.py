"""Sequential mode. Of R simulated runs a rate near alpha has a standard error of sqrt(alpha (1 - alpha) / R), 0.0077 for R = 800."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.evaluation.gate import sequential
from workbench.evaluation.statistics import tango

RUNS, ROWS = 800, 1_000
DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=60)


def draw(rng: np.random.Generator, runs: int, rows: int, difference: float, discordance: float) -> np.ndarray:
    law = [(discordance - difference) / 2, 1 - discordance, (discordance + difference) / 2]
    return rng.choice([-1.0, 0.0, 1.0], size=(runs, rows), p=law)


@pytest.mark.parametrize(("margin", "discordance"), [(0.05, 0.05), (0.05, 0.15), (0.03, 0.3)])
def test_peeking_after_every_row_passes_no_more_than_alpha(margin: float, discordance: float) -> None:
    rng, alpha = np.random.default_rng(1), 0.05
    wealth = np.concatenate([sequential.log_wealth(draw(rng, 100, ROWS, -margin, discordance), -margin) for _ in range(RUNS // 100)])
    ever = (wealth.max(axis=1) >= math.log(1 / alpha)).mean()
    assert ever <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / RUNS)


def test_peeking_at_a_fixed_sample_bound_does_not_keep_alpha() -> None:
    """What sequential mode is for: the fixed-sample gate, asked after every 50 rows, passes far more often than alpha."""
    rng, passed = np.random.default_rng(2), 0
    for row in draw(rng, 120, 600, -0.05, 0.15):
        seen = range(50, 601, 50)
        passed += any(tango(int(np.sum(row[:n] > 0)), int(np.sum(row[:n] < 0)), n, 0.1).low > -0.05 for n in seen)
    assert passed / 120 > 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)


def test_it_stops_early_where_the_answer_is_clear() -> None:
    rng = np.random.default_rng(3)
    good = sequential.judge(draw(rng, 1, 2_000, 0.05, 0.15)[0], 0.05, 0.05)
    bad = sequential.judge(draw(rng, 1, 2_000, -0.15, 0.2)[0], 0.05, 0.05)
    assert (good.verdict, bad.verdict) == ("PASS", "FAIL")
    assert good.at < 1_000 and bad.at < 1_000
    assert good.bounds.low > -0.05 and bad.bounds.high < -0.05


def test_an_equal_candidate_needs_not_three_times_the_rows() -> None:
    rng = np.random.default_rng(4)
    stops = [sequential.judge(row, 0.05, 0.05) for row in draw(rng, 40, 3 * 263, 0.0, 0.1)]  # 263: what a fixed sample needs
    assert sum(stop.verdict == "PASS" for stop in stops) / 40 > 0.8


@given(DIFFERENCES, st.sampled_from([0.02, 0.1, 0.4]), st.sampled_from([0.01, 0.05, 0.2]))
def test_bounds_agree_with_the_verdict_and_mirror(values: list[float], margin: float, alpha: float) -> None:
    difference = np.array(values)
    stop = sequential.judge(difference, margin, alpha)
    assert 1 <= stop.at <= len(difference)
    assert -1 <= stop.bounds.low <= stop.bounds.estimate <= stop.bounds.high <= 1
    assert (stop.bounds.low > -margin - 1e-8) >= (stop.verdict == "PASS")
    assert (stop.bounds.high < -margin + 1e-8) >= (stop.verdict == "FAIL")
    if stop.verdict == "INCONCLUSIVE":
        assert stop.at == len(difference)
        assert stop.bounds.low <= -margin + 1e-8 and stop.bounds.high >= -margin - 1e-8
    looser = sequential.judge(difference, margin, 2 * alpha)
    assert looser.at <= stop.at


@given(DIFFERENCES, st.randoms())
def test_the_wealth_at_the_end_does_not_depend_on_the_order(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ends = [sequential.log_wealth(np.array(one), -0.05)[-1] for one in (values, shuffled)]
    assert ends[0] == pytest.approx(ends[1])


def test_the_wealth_of_the_true_claim_is_not_expected_to_grow() -> None:
    """Exactly: over all outcomes of 6 rows, weighted by their probability, a fair bet keeps its mean of 1."""
    law = {-1.0: 0.12, 0.0: 0.8, 1.0: 0.08}
    outcomes = np.array(np.meshgrid(*[list(law)] * 6)).reshape(6, -1).T
    weights = np.prod(np.vectorize(law.get)(outcomes), axis=1)
    assert np.sum(weights * np.exp(sequential.log_wealth(outcomes, -0.04)[:, -1])) == pytest.approx(1)


def test_what_cannot_pass_and_how_many_more() -> None:
    assert sequential.impossible(20, 0.03, 0.05) and not sequential.impossible(1_000, 0.03, 0.05)
    rng = np.random.default_rng(5)
    rows = draw(rng, 1, 200, 0.0, 0.1)[0]
    needed = sequential.examples_needed(rows, 0.05, 0.05)
    assert needed is not None and needed > 50
    assert sequential.judge(np.tile(rows, 1 + needed // 200), 0.05, 0.05).verdict == "PASS"
    assert sequential.examples_needed(np.full(50, -1.0), 0.05, 0.05) is None
