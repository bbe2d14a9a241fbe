"""Telling drift from noise: exact where it can be, by simulation where it has to be, with the Monte-Carlo error stated."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest

from workbench.errors import EvaluationError
from workbench.evaluation import drift, outcomes
from workbench.evaluation.drift import compare, exact_p

Array = npt.NDArray[np.float64]
Draw = Callable[[int], Array]

ONE = {("closed-2026-01-01", "fp_1")}


def table(scores: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]] | None = None, **columns: Any) -> Any:
    """An outcomes table: `scores[i][k]` is the score of answer k to example i, whose text says it as well unless texts are given."""
    return outcomes.from_rows(
        {
            "candidate": "baseline",
            "example_id": f"e{i}",
            "repeat": k,
            "score": score,
            "output": texts[i][k] if texts else f"{score}",
            "simulated": False,
            **columns,
        }
        for i, row in enumerate(scores)
        for k, score in enumerate(row)
    )


def check(recorded: Any, fresh: Any, alpha: float = 0.01, **options: Any) -> drift.Drift:
    return compare(recorded, fresh, **{"recorded_versions": ONE, "fresh_versions": ONE, "alpha": alpha, **options})


def model(rng: np.random.Generator, canaries: int, accuracy: float, temperature: float, luck: Array | None = None) -> Draw:
    """A model with its own mind about every canary: it says that, and a share of 0.3 t of its answers are drawn anew.

    Half of the canaries are hard: five times as likely to be answered wrongly. Models of the same `luck` err on the same ones, the
    worse of them on some more; without it, each errs where it will.
    """
    wrong = np.where(np.arange(canaries) % 2 == 0, 1.0, 5.0) * (1 - accuracy) / 3
    mind = (rng.random(canaries) if luck is None else luck) >= wrong

    def draw(repeats: int) -> Array:
        anew = rng.random((canaries, repeats)) < 0.3 * temperature
        return np.where(anew, rng.random((canaries, repeats)) >= wrong[:, None], mind[:, None]).astype(np.float64)

    return draw


# The score ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "up", "same"), [(0, 0, 5), (3, 0, 9), (0, 8, 1), (9, 2, 4), (30, 12, 58)])
def test_one_answer_on_either_side_is_mcnemars_exact_test(down: int, up: int, same: int) -> None:
    right = np.array([[1, 0]] * down + [[0, 1]] * up + [[1, 1]] * same, dtype=np.float64)
    wanted = binomtest(down, down + up).pvalue if down + up else 1.0
    assert exact_p(right, 1) == pytest.approx(wanted)


def test_p_is_the_share_of_all_ways_to_deal_the_answers() -> None:
    rng = np.random.default_rng(5)
    for recorded, fresh in ((1, 2), (2, 2), (1, 3), (3, 1)):
        answers = recorded + fresh
        right = (rng.random((4, answers)) < 0.6).astype(np.float64)
        deals = list(itertools.combinations(range(answers), fresh))
        sums = [sum(right[row, list(deal)].sum() for row, deal in enumerate(each)) for each in itertools.product(deals, repeat=len(right))]
        seen = right[:, -fresh:].sum()
        tails = (np.mean(np.array(sums) <= seen), np.mean(np.array(sums) >= seen))
        assert exact_p(right, fresh) == pytest.approx(min(1.0, 2 * min(tails)))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("recorded", "fresh"), [(1, 3), (3, 3)])
def test_noise_is_no_drift(temperature: float, recorded: int, fresh: int) -> None:
    """False alarms of a model that did not change: at most alpha. 2,000 checks; three standard errors are 1.5 and 0.7 points."""
    rng = np.random.default_rng(1)
    checks = 2_000
    found = []
    for _ in range(checks):
        draw = model(rng, 100, 0.85, temperature)
        found.append(exact_p(np.hstack([draw(recorded), draw(fresh)]), fresh))
    for alpha in (0.05, 0.01):
        assert np.mean(np.array(found) <= alpha) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / checks)
    # It is no test that never rejects: at 0.05 a noisy model is called changed about that often.
    assert temperature == 0.0 or np.mean(np.array(found) <= 0.05) > 0.02


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("recorded", "elsewhere", "least"), [(1, False, 0.97), (3, False, 0.97), (1, True, 0.8), (3, True, 0.95)])
def test_ten_points_on_200_canaries_are_found(temperature: float, recorded: int, elsewhere: bool, least: float) -> None:
    """Power at alpha = 0.01, of 400 checks; the standard error is 2 points at most.

    A version that errs elsewhere changes answers in both directions; then the recorded answers want repeats as well.
    """
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(400):
        luck = None if elsewhere else rng.random(200)
        before, after = (model(rng, 200, accuracy, temperature, luck) for accuracy in (0.88, 0.78))
        found += exact_p(np.hstack([before(recorded), after(3)]), 3) <= 0.01
    assert found / 400 >= least - 3 * math.sqrt(least * (1 - least) / 400)


def test_scores_between_0_and_1_are_compared_by_permutations() -> None:
    """False alarms at 0.05, of 1,000 checks with 199 permutations (exact with any number); three standard errors are 2.1 points."""
    rng = np.random.default_rng(3)
    checks, alarms, finds = 1_000, 0, 0
    for _ in range(checks):
        own = rng.uniform(0.2, 0.9, (40, 1))
        values = np.clip(own + rng.normal(0, 0.1, (40, 4)), 0, 1)
        alarms += drift._sum_p(values, 3, 199) <= 0.05
        values[:, -3:] -= 0.08
        finds += drift._sum_p(values, 3, 199) <= 0.05
    assert 0.02 < alarms / checks <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / checks)
    assert finds / checks > 0.9


def test_permutations_agree_with_the_exact_law() -> None:
    rng = np.random.default_rng(4)
    right = np.hstack([(rng.random((60, 1)) < 0.9), (rng.random((60, 3)) < 0.8)]).astype(np.float64)
    assert 0.01 < exact_p(right, 3) < 0.99
    assert drift._sum_p(right, 3, 20_000) == pytest.approx(exact_p(right, 3), abs=0.02)  # 2 tails of a standard error of 0.0035 each


def test_a_score_that_changed_is_reported_as_it_is() -> None:
    before, after = [[1.0]] * 90 + [[0.0]] * 10, [[1.0] * 3] * 70 + [[0.0] * 3] * 30
    found = check(table(before), table(after))
    assert (found.verdict, found.exit_code, found.drifted) == ("score", 3, True)
    assert found.findings == ("wording", "score")
    assert (found.score.recorded, found.score.fresh) == (0.9, 0.7)
    assert found.score.difference == pytest.approx(-0.2)
    assert found.score.ci_low < -0.2 < found.score.ci_high < 0
    assert "90.0% recorded, 70.0% now on the same 100 canaries: -20.0 points" in found.text()
    assert json.loads(json.dumps(found.to_json()))["verdict"] == "score"


def test_answers_without_a_score_are_wrong_on_both_sides() -> None:
    good, none = [[1.0]] * 40, [[None] * 3] * 20 + [[1.0] * 3] * 20
    found = check(table(good), table(none))
    assert found.verdict == "score" and found.score.unscored == (0, 60) and found.score.fresh == 0.5
    assert "without a score: 0 recorded and 60 fresh answers" in found.text()
    assert check(table([[None]] * 40), table([[None] * 3] * 40)).verdict == "same"


# The wording -------------------------------------------------------------------------------------------------------------


def test_the_same_answers_are_the_same() -> None:
    found = check(table([[1.0], [0.0]] * 50), table([[1.0] * 3, [0.0] * 3] * 50))
    assert (found.verdict, found.findings, found.exit_code, found.drifted) == ("same", ("same",), 0, False)
    assert (found.wording.changed, found.wording.between, found.wording.within) == (0, 0.0, 0.0)
    assert found.score.p_value == found.wording.p_value == 1.0


def test_other_words_for_the_same_score() -> None:
    scores = [[1.0] * 3] * 100
    said = [["yes!"] * 3] * 10 + [["yes"] * 3] * 90
    found = check(table([[1.0]] * 100, [["yes"]] * 100), table(scores, said))
    assert (found.verdict, found.exit_code, found.wording.changed) == ("wording", 0, 10)
    assert found.wording.between == pytest.approx(0.1) and found.wording.within == 0.0


def test_words_that_vary_by_themselves_are_no_other_wording() -> None:
    """At most alpha; 300 checks at 0.05 with 199 permutations, three standard errors are 3.8 points."""
    rng = np.random.default_rng(6)
    alarms, finds = 0, 0
    for _ in range(300):
        texts = [[f"{i} {rng.integers(3)}" for _ in range(4)] for i in range(30)]
        other = [[f"{i} {rng.integers(3, 6)}" for _ in range(3)] for i in range(15)] + [row[1:] for row in texts[15:]]
        recorded = [[(1.0, ("said", row[0]))] for row in texts]
        for fresh, count in ((texts, "alarms"), (other, "finds")):
            new = [[(1.0, ("said", text)) for text in row[-3:]] for row in fresh]
            sides = [{str(i): row for i, row in enumerate(side)} for side in (recorded, new)]
            low = drift._wording(sides[0], sides[1], 199).p_value <= 0.05
            alarms, finds = alarms + (low and count == "alarms"), finds + (low and count == "finds")
    assert alarms / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert finds / 300 > 0.6


def test_a_refusal_is_not_an_empty_answer() -> None:
    refused = table([[None] * 3] * 20, [[""] * 3] * 20, status="refused")
    assert check(table([[None]] * 20, [[""]] * 20), refused).verdict == "wording"


# The version -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "fresh", "verdict"),
    [
        ({("m-1", "a")}, {("m-1", "a")}, "same"),
        ({("m-1", "a")}, {("m-2", "a")}, "version"),
        ({("m-1", "a")}, {("m-1", "b")}, "version"),
        ({("m-1", "a"), ("m-1", "b")}, {("m-1", "b")}, "same"),
        ({("m-1", "a")}, {("m-1", "a"), ("m-1", "b")}, "version"),
        ({("m-1", None)}, {("m-1", "b")}, "same"),
        ({("m-1", "a")}, {("m-1", None)}, "same"),
        ({(None, "a")}, {("m-2", "a")}, "same"),
    ],
)
def test_versions(recorded: set[Any], fresh: set[Any], verdict: str) -> None:
    same = table([[1.0] * 2] * 20)
    found = check(same, same, recorded_versions=recorded, fresh_versions=fresh)
    assert found.verdict == verdict
    assert found.exit_code == (3 if verdict == "version" else 0)


def test_all_that_holds_is_said_and_the_gravest_is_the_verdict() -> None:
    found = check(table([[1.0]] * 60), table([[0.0] * 3] * 60), fresh_versions={("closed-2026-02-02", None)})
    assert found.findings == ("wording", "score", "version")
    assert found.verdict == "version"
    text = found.text()
    assert "DRIFTED: another version answers" in text
    assert "recorded closed-2026-01-01 (fp_1); now closed-2026-02-02" in text


# What else ---------------------------------------------------------------------------------------------------------------


def test_simulated_spreads() -> None:
    real, played, unknown = (table([[1.0] * 2] * 5, simulated=mark) for mark in (False, True, None))
    assert check(real, real).simulated is False
    assert check(real, played).simulated is True
    assert check(real, unknown).simulated is None
    assert check(played, unknown).text().startswith("SIMULATED ")
    assert not check(real, real).text().startswith("SIMULATED ")


def test_tables_that_cannot_be_compared() -> None:
    three = table([[1.0]] * 3)
    with pytest.raises(EvaluationError, match="1 examples were answered at one time only, the first is 'e3'"):
        check(three, table([[1.0]] * 4))
    with pytest.raises(EvaluationError, match="some examples have 1 fresh answers and others 2"):
        check(three, table([[1.0], [1.0, 0.0], [1.0]]))
    with pytest.raises(EvaluationError, match="there are no recorded answers"):
        check(table([]), three)
    with pytest.raises(EvaluationError, match="alpha is 1"):
        check(three, three, alpha=1.0)


def test_a_single_canary_says_next_to_nothing() -> None:
    found = check(table([[1.0]]), table([[0.0] * 3]))
    assert found.verdict == "same" and found.score.p_value == pytest.approx(0.5)
