"""The gate: paired non-inferiority of a candidate to a baseline, as a function of two outcomes tables.

H0: p_candidate - p_baseline <= -margin. PASS where the one-sided lower bound of the difference is above -margin, FAIL where the
upper bound is below it, otherwise INCONCLUSIVE. Required slices and floors must all pass, each at alpha (intersection-union,
Berger 1982, Technometrics 24:295: no correction is needed where all have to pass). Binary scores: Tango's score interval. Others,
and clustered ones: paired BCa bootstrap, clusters drawn whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from workbench.errors import EvaluationError
from workbench.evaluation import outcomes
from workbench.evaluation.gate import floors, looks, paired, sequential
from workbench.evaluation.gate.pairing import Pairs, choose, pair
from workbench.evaluation.gate.verdict import Comparison, Verdict, worst
from workbench.evaluation.statistics import Interval, bootstrap_mean, tango
from workbench.recipe.schema.gate import Gate

Array = npt.NDArray[np.float64]


def gate_files(
    candidate: Path,
    baseline: Path,
    *,
    margin: float,
    alpha: float = 0.05,
    slices: Sequence[str] = (),
    floors: Sequence[str] = (),
    unscored: str = "fail",
    sequential: bool = False,
    candidate_name: str | None = None,
    baseline_name: str | None = None,
    size_bytes: int | None = None,
    count_in: Path | None = None,
) -> Verdict:
    """Judge outcomes tables from anywhere; it always answers, even where the tables are too small to pass.

    Args:
        candidate, baseline: .parquet, .csv or .jsonl.
        margin, alpha, slices, unscored, sequential: as in the recipe's section `gate`.
        floors: each `name=value`, a key of `gate.floors` and its limit.
        candidate_name, baseline_name: which one, where a file holds several.
        size_bytes: of the candidate's weights, for `size_mb`.
        count_in: the state directory in which this look at the test set is counted; None: not counted.

    Raises:
        EvaluationError: a file cannot be read, or an option or the tables make no sense.
    """
    given = {
        "margin": margin,
        "alpha": alpha,
        "slices": list(slices),
        "unscored": unscored,
        "sequential": sequential,
        "floors": dict(map(_limit, floors)),
    }
    try:
        rules = Gate.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise EvaluationError(f"{name} is {first['input']!r}: {first['msg']}", where="gate", fix="see workbench gate --help") from error
    ours = choose(outcomes.read(candidate), candidate_name, option="--candidate-name", where=str(candidate))
    theirs = choose(outcomes.read(baseline), baseline_name, option="--baseline-name", where=str(baseline))
    look = None
    if count_in is not None:
        pair(ours, theirs, unscored=rules.unscored)  # what cannot be judged is no look
        look = looks.take(count_in, looks.test_digest(theirs), looks.subject_digest(ours), rules.alpha)
    return gate(ours, theirs, rules, size_bytes=size_bytes, look=look)


def gate(
    candidate: pa.Table,
    baseline: pa.Table,
    rules: Gate,
    *,
    guards: Mapping[str, tuple[pa.Table, float]] | None = None,
    size_bytes: int | None = None,
    look: looks.Look | None = None,
) -> Verdict:
    """The verdict on one candidate.

    Args:
        candidate, baseline: outcomes tables of one candidate each, on the same examples.
        rules: the recipe's section.
        guards: the candidate's outcomes on each guard set that has a floor, and that floor.
        size_bytes: of the candidate's weights, for `floors.size_mb`.
        look: which look at this test set it is, as `looks.take` counted it; None: not counted.

    Raises:
        EvaluationError: the tables do not match, a slice does not exist, or sequential mode meets clusters.
    """
    pairs = pair(candidate, baseline, unscored=rules.unscored)
    parts = pairs.slices(rules.slices)
    level = rules.alpha if look is None else look.alpha
    stopped_at = None
    if rules.sequential:
        compared, stopped_at = _follow({"all": pairs, **parts}, rules.margin, level)
    else:
        compared = [_compare(name, part, rules.margin, level, binary=pairs.binary) for name, part in {"all": pairs, **parts}.items()]
    checked = floors.judge(rules.floors, guards or {}, pairs, candidate, size_bytes=size_bytes, unscored=rules.unscored, alpha=level)
    return Verdict(
        verdict=worst([*(one.verdict for one in compared), *(one.verdict for one in checked)]),
        candidate=candidate["candidate"][0].as_py(),
        baseline=baseline["candidate"][0].as_py(),
        overall=compared[0],
        slices=tuple(compared[1:]),
        floors=checked,
        margin=rules.margin,
        alpha=rules.alpha,
        level=level,
        look=look,
        unscored=pairs.unscored,
        repeats=pairs.repeats,
        stopped_at=stopped_at,
        simulated=_simulated([candidate, baseline, *(table for table, _ in (guards or {}).values())]),
    )


def _compare(name: str, pairs: Pairs, margin: float, alpha: float, *, binary: bool) -> Comparison:
    difference, n = pairs.difference, len(pairs)
    if binary and pairs.clusters is None:
        only_ours, only_theirs = int(np.sum(difference > 0)), int(np.sum(difference < 0))
        bounds = paired.difference_bounds(only_ours, only_theirs, n, alpha)
        verdict = _verdict(bounds, margin)
        # Without a single discordant pair the best guess is not that there are none.
        discordance = max(only_ours + only_theirs, 1) / n
        total = None
        if verdict == "INCONCLUSIVE":
            total = paired.examples_needed(margin, alpha, difference=bounds.estimate, discordance=discordance)
        mde = paired.detectable(n, margin, alpha, discordance=discordance)
        method = "Tango's score interval for paired proportions"
        plain = tango(only_ours, only_theirs, n, 2 * alpha)
        if max(plain.low - bounds.low, bounds.high - plain.high) > 1e-9:
            method += f", widened by exact enumeration (alone: {100 * plain.low:+.2f} to {100 * plain.high:+.2f})"
        small = paired.impossible(n, margin, alpha)
    else:
        bounds = bootstrap_mean(difference, (-1.0, 1.0), 2 * alpha, clusters=pairs.clusters)
        verdict = _verdict(bounds, margin)
        groups = n if pairs.clusters is None else len(set(pairs.clusters))
        total, mde = _normal_plan(difference, pairs.clusters, groups, margin, alpha)
        method = "paired BCa bootstrap" if pairs.clusters is None else f"paired BCa bootstrap over {groups} clusters"
        small = _unseen(groups, alpha) >= margin
    needed = 0 if verdict != "INCONCLUSIVE" else None if total is None else max(1, total - n)
    return _comparison(name, pairs, bounds, verdict, method, too_small=small, needed=needed, mde=mde)


def _comparison(
    name: str, pairs: Pairs, bounds: Interval, verdict: str, method: str, *, too_small: bool, needed: int | None, mde: float | None
) -> Comparison:
    return Comparison(
        name=name,
        verdict=verdict,
        candidate=float(pairs.candidate.mean()),
        baseline=float(pairs.baseline.mean()),
        difference=bounds.estimate,
        ci_low=bounds.low,
        ci_high=bounds.high,
        n=len(pairs),
        discordance=float(np.mean(pairs.difference != 0)),
        method=method,
        too_small=too_small,
        needed=needed,
        mde=mde,
    )


def _verdict(bounds: Interval, margin: float) -> str:
    return "PASS" if bounds.low > -margin else "FAIL" if bounds.high < -margin else "INCONCLUSIVE"


def _unseen(groups: int, alpha: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(alpha) ** 2 / (groups + ndtri(alpha) ** 2))


def _normal_plan(
    difference: Array, clusters: Sequence[str] | None, groups: int, margin: float, alpha: float
) -> tuple[int | None, float | None]:
    """Examples needed in all, and the minimum detectable effect; normal approximation, with the allowance of `bootstrap_mean`."""
    from scipy.special import ndtri

    n, mean = len(difference), float(difference.mean())
    labels = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    error = math.sqrt(float(np.sum(np.bincount(labels, difference - mean) ** 2))) / n
    sides = float(ndtri(paired.POWER) - ndtri(alpha))
    effect = max(sides * error - margin, (_unseen(groups, alpha) - margin) / (1 - _unseen(groups, alpha)))
    if mean <= -margin:
        return None, effect if effect < 1 else None
    share = (mean + margin) / (mean + 1)  # of unseen groups that would still let it pass
    least = math.floor(float(ndtri(alpha) ** 2) * (1 - share) / share) + 1
    total = max(n * (sides * error / (mean + margin)) ** 2, least * n / groups)
    return math.ceil(total), effect if effect < 1 else None


def _follow(parts: Mapping[str, Pairs], margin: float, alpha: float) -> tuple[list[Comparison], int | None]:
    """Sequential mode: every part by itself; and after how many of all examples the whole was decided."""
    everything = parts["all"]
    if everything.clusters is not None:
        raise EvaluationError(
            "sequential mode needs independent examples, and these are in clusters", where="gate", fix="judge without sequential"
        )
    place = {example: number for number, example in enumerate(everything.ids, start=1)}
    found, at = [], []
    for name, part in parts.items():
        stop = sequential.judge(part.difference, margin, alpha)
        total = sequential.examples_needed(part.difference, margin, alpha) if stop.verdict == "INCONCLUSIVE" else None
        needed = 0 if stop.verdict != "INCONCLUSIVE" else None if total is None else max(1, total - len(part))
        seen = part.take(range(stop.at))
        method = "confidence sequence by betting, valid at every stop"
        small = sequential.impossible(len(part), margin, alpha)
        found.append(_comparison(name, seen, stop.bounds, stop.verdict, method, too_small=small, needed=needed, mde=None))
        at.append(place[part.ids[stop.at - 1]])
    if worst([one.verdict for one in found]) == "PASS":
        return found, max(at)
    failed = [number for number, one in zip(at, found, strict=True) if one.verdict == "FAIL"]
    return found, min(failed) if failed else None


def _simulated(tables: Sequence[pa.Table]) -> bool | None:
    values = {value for table in tables for value in table["simulated"].to_pylist()}
    return True if True in values else None if None in values else False


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise EvaluationError(f"{text!r} is not NAME=NUMBER", where="floors", fix="write it as latency_p99_s=1.5") from error
