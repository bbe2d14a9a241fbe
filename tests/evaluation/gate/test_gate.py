"""The whole gate, on outcomes tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import EvaluationError
from workbench.evaluation import outcomes
from workbench.evaluation.gate import gate, gate_files, outlook, paired
from workbench.evaluation.gate.floors import quantile_bounds
from workbench.evaluation.statistics import bootstrap_mean, tango
from workbench.recipe.schema.gate import Floors, Gate

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def table(name: str, scores: Sequence[float | None], **columns: Sequence[Any]) -> pa.Table:
    rows = [{"candidate": name, "example_id": f"e{number}", "score": score} for number, score in enumerate(scores)]
    for column, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    return outcomes.from_rows(rows)


def scores(only_ours: int, only_theirs: int, both: int, neither: int = 0) -> tuple[list[float], list[float]]:
    ours = [1.0] * only_ours + [0.0] * only_theirs + [1.0] * both + [0.0] * neither
    theirs = [0.0] * only_ours + [1.0] * only_theirs + [1.0] * both + [0.0] * neither
    return ours, theirs


def judged(only_ours: int, only_theirs: int, both: int, neither: int = 0, **rules: Any) -> Any:
    ours, theirs = scores(only_ours, only_theirs, both, neither)
    return gate(table("small", ours), table("closed", theirs), Gate(**{"margin": 0.03, **rules}))


# The verdict -------------------------------------------------------------------------------------------------------


def test_pass_fail_and_inconclusive() -> None:
    good, bad, open_ = judged(30, 30, 900, 40), judged(20, 90, 850, 40), judged(40, 50, 210)
    assert [(one.verdict, one.exit_code) for one in (good, bad, open_)] == [("PASS", 0), ("FAIL", 3), ("INCONCLUSIVE", 4)]
    plain = tango(30, 30, 1000, 0.1)
    assert (good.overall.ci_low, good.overall.ci_high) == pytest.approx((plain.low, plain.high), abs=1e-12)
    assert good.overall.needed == bad.overall.needed == 0
    assert open_.overall.needed is None  # 10 of 300 worse: beyond the margin


def test_zero_discordance_in_twenty_examples_is_no_pass() -> None:
    verdict = judged(0, 0, 20)
    assert verdict.verdict == "INCONCLUSIVE" and verdict.overall.too_small
    assert "no table of so few examples can pass" in verdict.text()
    needed = verdict.overall.needed
    assert needed is not None and judged(0, 0, 20 + needed).verdict == "PASS"


def test_the_number_needed_is_of_use() -> None:
    few = judged(20, 22, 358)
    assert few.verdict == "INCONCLUSIVE" and few.overall.needed is not None
    n = 400 + few.overall.needed
    rng, passed = np.random.default_rng(1), 0
    for only_ours, only_theirs, rest in rng.multinomial(n, [20 / 400, 22 / 400, 358 / 400], 400):
        assert rest >= 0
        passed += tango(int(only_ours), int(only_theirs), n, 0.1).low > -0.03
    assert passed / 400 == pytest.approx(0.8, abs=0.03 + 3 * math.sqrt(0.8 * 0.2 / 400))


def test_json_and_text_say_the_same() -> None:
    verdict = judged(30, 30, 900, 40)
    found = verdict.to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {"verdict", "difference", "ci_low", "ci_high", "margin", "alpha", "n", "simulated", "needed", "mde", "method"} <= found.keys()
    assert (found["verdict"], found["n"], found["margin"], found["alpha"], found["simulated"]) == ("PASS", 1000, 0.03, 0.05, None)
    assert verdict.text().startswith("PASS: small is as good as closed, or worse by less than 3 points\n")
    assert "not known whether these outcomes are simulated" in verdict.text()


@settings(max_examples=30, deadline=None)
@given(PAIRS, st.randoms())
def test_order_does_not_matter_and_sides_mirror(pairs: list[tuple[bool, bool]], random: Any) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)
    ours, theirs = (table(name, [float(pair[side]) for pair in pairs]) for side, name in ((0, "a"), (1, "b")))
    rules = Gate(margin=0.1)
    one, other = gate(ours, theirs, rules), gate(ours.take(order), theirs, rules)
    assert one == other
    mirrored = gate(theirs, ours, rules)
    assert (mirrored.overall.ci_low, mirrored.overall.ci_high) == (-one.overall.ci_high, -one.overall.ci_low)


@settings(max_examples=30, deadline=None)
@given(PAIRS, st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_a_wider_margin_and_a_larger_alpha_never_undo_a_pass(pairs: list[tuple[bool, bool]], one: float, other: float) -> None:
    ours, theirs = (table(name, [float(pair[side]) for pair in pairs]) for side, name in ((0, "a"), (1, "b")))
    less, more = sorted((one, other))
    if gate(ours, theirs, Gate(margin=less)).verdict == "PASS":
        assert gate(ours, theirs, Gate(margin=more)).verdict == "PASS"
    if gate(ours, theirs, Gate(margin=0.1, alpha=less)).verdict == "PASS":
        assert gate(ours, theirs, Gate(margin=0.1, alpha=more)).verdict == "PASS"


def test_answering_twice_alike_is_no_more_evidence() -> None:
    """Repeats are averaged: the example is the unit."""
    ours, theirs = scores(20, 25, 355)
    twice = [{"candidate": "a", "example_id": f"e{n}", "score": score, "repeat": k} for n, score in enumerate(ours) for k in (0, 1)]
    single = gate(table("a", ours), table("b", theirs), Gate(margin=0.03))
    assert gate(outcomes.from_rows(twice), table("b", theirs), Gate(margin=0.03)).overall == single.overall
    mixed = outcomes.from_rows([{**row, "score": float(row["repeat"])} for row in twice])
    assert gate(mixed, table("b", theirs), Gate(margin=0.03)).overall.candidate == 0.5


# Choosing among variants first ---------------------------------------------------------------------------------------


def test_the_best_of_eight_on_validation_passes_on_test_no_more_often() -> None:
    """Every variant is worse by exactly the margin. Judged on the rows that chose it, the best passes far too often."""
    rng, runs, n, margin, alpha = np.random.default_rng(2), 3_000, 300, 0.05, 0.05
    frontier = paired._frontier(n, -margin, paired._critical(n, -margin, alpha))
    honest = circular = 0
    for _ in range(runs):
        baseline = rng.random((2, 1, n)) < 0.85  # validation and test
        lost, won = rng.random((2, 8, n)), rng.random((2, 8, n))
        # Losing 0.10 of the baseline's right answers and winning 0.2333 of its wrong ones costs 0.085 - 0.035 = the margin.
        variants = np.where(baseline, lost >= 0.10, won < 0.035 / 0.15)
        best = variants[0].sum(axis=1).argmax()
        passed = []
        for split in (1, 0):
            ours, theirs = variants[split, best], baseline[split, 0]
            only_ours, only_theirs = (ours & ~theirs).sum(), (theirs & ~ours).sum()
            passed.append(only_theirs <= frontier[only_ours])
        honest, circular = honest + passed[0], circular + passed[1]
    error = math.sqrt(alpha * (1 - alpha) / runs)  # 0.004
    assert honest / runs <= 1.1 * alpha + 3 * error
    assert circular / runs > 2 * alpha


# Other scores ------------------------------------------------------------------------------------------------------


def test_scores_between_are_bootstrapped_and_keep_alpha() -> None:
    rng, runs, alpha, passed = np.random.default_rng(3), 250, 0.1, 0
    for _ in range(runs):
        difference = np.where(rng.random(150) < 0.1, -0.5, 0.0) + rng.normal(0, 0.02, 150)  # mean -0.05, very skewed
        passed += bootstrap_mean(np.clip(difference, -1, 1), (-1, 1), 2 * alpha).low > -0.05
    assert passed / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    verdict = gate(table("a", [0.5, 0.75] * 100), table("b", [0.5, 0.7] * 100), Gate(margin=0.03))
    assert verdict.overall.method == "paired BCa bootstrap" and verdict.verdict == "PASS"


def test_a_bootstrap_does_not_pass_on_twenty_equal_or_nearly_equal_scores() -> None:
    for odd in (0.5, 0.6):
        verdict = gate(table("a", [0.5] * 19 + [odd]), table("b", [0.5] * 20), Gate(margin=0.03))
        assert verdict.verdict == "INCONCLUSIVE" and verdict.overall.too_small
        assert verdict.overall.needed is not None and verdict.overall.needed > 40


def test_clusters_are_drawn_whole() -> None:
    rng = np.random.default_rng(4)
    shift = np.repeat(rng.choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.8, 0.1]), 10)
    ours, theirs = (shift >= 0).astype(float), (shift <= 0).astype(float)
    free = gate(table("a", ours.tolist()), table("b", theirs.tolist()), Gate(margin=0.1))
    names = [f"doc{number // 10}" for number in range(600)]
    tied = gate(table("a", ours.tolist(), cluster=names), table("b", theirs.tolist()), Gate(margin=0.1))
    assert "over 60 clusters" in tied.overall.method
    assert tied.overall.difference == free.overall.difference
    width = tied.overall.ci_high - tied.overall.ci_low
    assert width == pytest.approx(math.sqrt(10) * (free.overall.ci_high - free.overall.ci_low), rel=0.15)


def test_clusters_do_not_go_with_sequential_mode() -> None:
    with pytest.raises(EvaluationError, match="sequential mode needs independent examples"):
        gate(table("a", [1.0, 1.0], cluster=["x", "x"]), table("b", [1.0, 1.0]), Gate(margin=0.1, sequential=True))


# Rows without a score, and tables that do not match ----------------------------------------------------------------


def test_unscored_rows_count_against_the_candidate_unless_told_otherwise() -> None:
    ours, theirs = table("a", [1.0, None, 1.0, 0.0]), table("b", [1.0, 1.0, None, 0.0])
    counted = gate(ours, theirs, Gate(margin=0.1))
    assert (counted.overall.candidate, counted.overall.baseline, counted.overall.n) == (0.5, 0.75, 4)
    assert "1 of the candidate's rows, 1 of the baseline's (2 unscored); they count against the candidate" in counted.text()
    left = gate(ours, theirs, Gate(margin=0.1, unscored="exclude"))
    assert (left.overall.n, left.unscored.excluded) == (2, 2)
    assert "2 examples are left out" in left.text()
    with pytest.raises(
        EvaluationError, match="1 of the candidate's rows and 1 of the baseline's have no score, the first for example 'e1'"
    ):
        gate(ours, theirs, Gate(margin=0.1, unscored="refuse"))
    with pytest.raises(EvaluationError, match="no example is left"):
        gate(table("a", [None]), table("b", [1.0]), Gate(margin=0.1, unscored="exclude"))


def test_other_examples_are_refused_with_the_difference() -> None:
    with pytest.raises(EvaluationError, match=r"5 only the candidate has \(e3, e4, e5, ...\); 3 are in both"):
        gate(table("a", [1.0] * 8), table("b", [1.0] * 3), Gate(margin=0.1))


# Slices and floors -------------------------------------------------------------------------------------------------


def test_every_slice_has_to_pass() -> None:
    ours, theirs = scores(30, 30, 900, 40)
    bad = [{"source": "mail" if number < 60 else "web", "size": 1} for number in range(1000)]
    verdict = gate(table("a", ours, metadata=bad), table("b", theirs), Gate(margin=0.03, slices=["source"]))
    assert [(one.name, one.n, one.verdict) for one in verdict.slices] == [("source=mail", 60, "INCONCLUSIVE"), ("source=web", 940, "PASS")]
    assert (verdict.overall.verdict, verdict.verdict) == ("PASS", "INCONCLUSIVE")
    assert verdict.slices[0].too_small
    assert "a may miss what is required: source=mail" in verdict.text()
    web = gate(table("a", ours, metadata=bad), table("b", theirs), Gate(margin=0.03, slices=["source=web", "size=1"]))
    assert web.verdict == "PASS" and [one.name for one in web.slices] == ["source=web", "size=1"]
    for wanted, message in (("sauce", "no example has the field 'sauce'"), ("source=fax", "no example has source=fax")):
        with pytest.raises(EvaluationError, match=message):
            gate(table("a", ours, metadata=bad), table("b", theirs), Gate(margin=0.03, slices=[wanted]))


def test_examples_without_the_field_are_a_slice_too() -> None:
    metadata = [{"source": "web"}] * 500 + [{}] * 500
    verdict = gate(table("a", [1.0] * 1000, metadata=metadata), table("b", [1.0] * 1000), Gate(margin=0.03, slices=["source"]))
    assert [one.name for one in verdict.slices] == ["source=(missing)", "source=web"]


def test_floors() -> None:
    ours, theirs = scores(30, 30, 900, 40)
    seconds = np.linspace(0.1, 1.0, 1000).tolist()
    tab = table("a", ours, latency_s=seconds, cost_usd=[0.001] * 1000)

    def floor(size: int | None = 90_000_000, **limits: float) -> tuple[str, str]:
        verdict = gate(tab, table("b", theirs), Gate(margin=0.03, floors=Floors(**limits)), size_bytes=size)
        return verdict.floors[0].verdict, verdict.verdict

    assert floor(score=0.9) == ("PASS", "PASS")
    assert floor(score=0.93) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert floor(score=0.97) == ("FAIL", "FAIL")
    assert (
        floor(latency_p99_s=1.0)[0] == "PASS" and floor(latency_p99_s=0.9)[0] == "FAIL" and floor(latency_p99_s=0.991)[0] == "INCONCLUSIVE"
    )
    assert floor(latency_p50_s=0.6)[0] == "PASS" and floor(latency_p95_s=0.9)[0] == "FAIL"
    assert floor(size_mb=100)[0] == "PASS" and floor(size_mb=80)[0] == "FAIL" and floor(None, size_mb=80)[0] == "INCONCLUSIVE"
    assert floor(cost_per_1k_usd=1.1)[0] == "PASS" and floor(cost_per_1k_usd=0.5)[0] == "FAIL"
    guards = {"chat": (table("a", [1.0] * 80 + [0.0] * 20), 0.95)}
    verdict = gate(tab, table("b", theirs), Gate(margin=0.03), guards=guards)
    assert (verdict.floors[0].name, verdict.floors[0].verdict, verdict.exit_code) == ("guard chat", "FAIL", 3)


def test_failed_requests_never_end() -> None:
    rows = [{"candidate": "a", "example_id": f"e{n}", "score": 1.0, "latency_s": 0.1} for n in range(100)]
    rows[0] |= {"score": None, "latency_s": None, "status": "failed"}
    verdict = gate(outcomes.from_rows(rows), table("b", [1.0] * 100), Gate(margin=0.1, floors=Floors(latency_p99_s=1)))
    assert verdict.floors[0].verdict == "INCONCLUSIVE" and "1 failed requests count as endless" in verdict.floors[0].method
    assert json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize(("n", "quantile"), [(100, 0.5), (400, 0.95), (400, 0.99)])
def test_quantile_bounds_cover(n: int, quantile: float) -> None:
    rng, truth, runs = np.random.default_rng(5), -math.log(1 - quantile), 1_000
    bounds = [quantile_bounds(rng.exponential(size=n), quantile, 0.05) for _ in range(runs)]
    slack = 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean([low > truth for low, _ in bounds]) <= 0.05 + slack
    assert np.mean([high < truth for _, high in bounds]) <= 0.05 + slack
    assert quantile_bounds(rng.random(298), 0.99, 0.05)[1] == math.inf  # it takes log(0.05) / log(0.99) = 299 rows
    assert quantile_bounds(rng.random(299), 0.99, 0.05)[1] < 1


# From files --------------------------------------------------------------------------------------------------------


def write_csv(path: Path, *columns: tuple[str, Sequence[float | None]]) -> Path:
    rows = [f"{name},{number},{'' if score is None else score},{'web' if number % 2 else 'mail'}" for name, scored in columns
            for number, score in enumerate(scored)]  # fmt: skip
    path.write_text("\n".join(["candidate,example_id,score,source", *rows]) + "\n")
    return path


def test_foreign_tables(tmp_path: Path) -> None:
    ours, theirs = scores(30, 30, 900, 40)
    one = write_csv(tmp_path / "a.csv", ("small", ours), ("base", [0.0] * 1000))
    other = tmp_path / "b.parquet"
    outcomes.write(outcomes.read(write_csv(tmp_path / "b.csv", ("closed", theirs))), other)
    verdict = gate_files(one, other, margin=0.03, candidate_name="small", slices=["source"], floors=["score=0.9"])
    assert (verdict.candidate, verdict.baseline, verdict.overall.verdict) == ("small", "closed", "PASS")
    assert [part.name for part in verdict.slices] == ["source=mail", "source=web"] and len(verdict.floors) == 1
    with pytest.raises(EvaluationError, match="several candidates: base, small\n  fix: choose one with --candidate-name"):
        gate_files(one, other, margin=0.03)
    with pytest.raises(EvaluationError, match="no candidate 'big'\n  fix: choose among base, small"):
        gate_files(one, other, margin=0.03, candidate_name="big")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "margin is 0.0: Input should be greater than 0"),
        ({"margin": math.nan}, "margin is nan"),
        ({"margin": 0.1, "alpha": 0.7}, "alpha is 0.7: Input should be less than 0.5"),
        ({"margin": 0.1, "unscored": "drop"}, "unscored is 'drop'"),
        ({"margin": 0.1, "floors": ["speed=3"]}, "floors.speed is 3.0: Extra inputs are not permitted"),
        ({"margin": 0.1, "floors": ["score"]}, "'score' is not NAME=NUMBER"),
        ({"margin": 0.1, "slices": [""]}, "slices.0 is ''"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write_csv(tmp_path / "a.csv", ("a", [1.0, 0.0]))
    with pytest.raises(EvaluationError) as caught:
        gate_files(path, path, **options)
    assert message in str(caught.value)


def test_counted_looks_are_judged_more_strictly(tmp_path: Path) -> None:
    theirs = write_csv(tmp_path / "b.csv", ("closed", [1.0] * 300))
    verdicts = []
    for number in (3, 4, 3):
        ours = write_csv(tmp_path / f"{number}.csv", ("small", [0.0] * number + [1.0] * (300 - number)))
        verdicts.append(gate_files(ours, theirs, margin=0.05, count_in=tmp_path / "state"))
    assert [one.look.number for one in verdicts if one.look] == [1, 2, 1]
    assert [one.level for one in verdicts] == pytest.approx([0.0303964, 0.0075991, 0.0303964], rel=1e-4)
    assert {one.alpha for one in verdicts} == {0.05}
    assert "look 2 at this test set: judged at alpha 0.0076 instead of 0.05" in verdicts[1].text()
    assert gate_files(ours, theirs, margin=0.05).level == 0.05
    with pytest.raises(EvaluationError):  # what cannot be judged is no look
        gate_files(write_csv(tmp_path / "c.csv", ("c", [1.0])), theirs, margin=0.05, count_in=tmp_path / "state")
    assert len((tmp_path / "state" / "looks.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(False, False, False), (True, False, True), (False, True, True), (None, False, None), (None, True, True), (False, None, None)],
)
def test_simulated_spreads(ours: bool | None, theirs: bool | None, expected: bool | None) -> None:
    verdict = gate(table("a", [1.0] * 9, simulated=[False] * 8 + [ours]), table("b", [1.0] * 9, simulated=[theirs] * 9), Gate(margin=0.1))
    assert verdict.simulated is expected and verdict.to_json()["simulated"] is expected
    assert verdict.text().startswith("SIMULATED") == (expected is True)


def test_sequential_mode_says_where_it_stopped() -> None:
    rng = np.random.default_rng(6)
    theirs = (rng.random(1500) < 0.8).astype(float)
    ours = np.where(rng.random(1500) < 0.05, 1 - theirs, theirs)
    kinds = [{"kind": "x" if number % 3 else "y"} for number in range(1500)]
    rules = Gate(margin=0.08, sequential=True, slices=["kind"])
    verdict = gate(table("a", ours.tolist(), metadata=kinds), table("b", theirs.tolist()), rules)
    assert verdict.verdict == "PASS" and verdict.stopped_at is not None
    assert verdict.overall.n < verdict.stopped_at <= 1500  # the slices take longer
    assert f"stopped after {verdict.stopped_at} examples" in verdict.text()


# Beforehand --------------------------------------------------------------------------------------------------------


def test_outlook() -> None:
    hopeless = outlook(20, Gate(margin=0.03))
    assert (
        hopeless.impossible
        and "the gate cannot pass: 20 examples are too few" in hopeless.text()
        and str(hopeless.least) in hopeless.text()
    )
    usual, later = outlook(1000, Gate(margin=0.03)), outlook(1000, Gate(margin=0.03), look=3)
    assert not usual.impossible and usual.mde is not None and later.mde is not None and usual.mde < later.mde
    assert usual.power_if_equal == pytest.approx(paired.power(1000, 0.03, 0.05, discordance=0.1))
    assert outlook(1000, Gate(margin=0.03, discordance=0.3)).power_if_equal < usual.power_if_equal
    assert "passes 4 times in 5" in usual.text()
