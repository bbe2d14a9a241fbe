"""Has a closed model changed since it was recorded? A function of two outcomes tables, both with repeats where there are any.

Four findings, from the lightest to the gravest: `same`; `wording`, other texts with the same score; `score`; and `version`, which needs
no statistics: the name or the fingerprint that answers carry is one that no recorded answer carried.

A model that draws its answers differs from itself. So the tests compare recorded and fresh answers only with what repeats of one
version differ by: where nothing changed, it is chance which of the R + F answers to an example are the R recorded ones. Both are
permutation tests within examples, and exact at any size, at any temperature and for any share of examples that are noisy:

- score: the sum of the fresh scores, two-sided. Binary scores: the exact conditional test of several 2x2 tables, one an example
  (Mantel & Haenszel 1959, JNCI 22:719; Mehta, Patel & Gray 1985, JASA 80:969); with one answer on either side it is McNemar's.
  Others: random permutations, p = (1 + as extreme) / (1 + drawn) (Phipson & Smyth 2010, SAGMB 9:39).
- wording: the number of (recorded, fresh) pairs of equal texts, too few of them; random permutations.

So alpha bounds how often a model that did not change is said to have changed. Both are about the examples that were asked: a version
that errs as often, but elsewhere, may well have another score on these. How far that reaches beyond them is what the interval says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workbench.errors import EvaluationError
from workbench.evaluation.statistics import SEED, bootstrap_mean

#: From the lightest to the gravest.
FINDINGS = ("same", "wording", "score", "version")
EXIT_CODES = {"same": 0, "wording": 0, "score": 3, "version": 3}
PERMUTATIONS = 9_999

_CELLS_AT_ONCE = 4_000_000  # bounds the memory of the permutations to about 100 MB
_TIE = 1e-9

Array = npt.NDArray[np.float64]
#: (model, system fingerprint) as an answer carries them; None where it does not say.
Version = tuple[str | None, str | None]


@dataclass(frozen=True)
class Scores:
    """Then and now.

    Attributes:
        recorded, fresh: mean scores, 0 to 1; an answer without a score counts as 0 on both sides.
        difference: fresh - recorded.
        ci_low, ci_high: two-sided bounds with coverage 1 - alpha, by paired bootstrap, for all examples like these; the test decides.
        p_value: of the test above.
        unscored: answers without a score, recorded and fresh.
    """

    recorded: float
    fresh: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    unscored: tuple[int, int]


@dataclass(frozen=True)
class Wording:
    """How often answers differ in their texts.

    Attributes:
        changed: examples to which no fresh answer is a recorded one.
        between: share of (recorded, fresh) pairs of answers to one example that differ.
        within: the same share of pairs of one side, which is the model's own noise; None: neither side has repeats.
        p_value: of the test above.
    """

    changed: int
    between: float
    within: float | None
    p_value: float


@dataclass(frozen=True)
class Drift:
    """What a check has found.

    Attributes:
        findings: all that holds, the gravest last; `same` stands alone.
        canaries: examples asked again.
        repeats: answers to each of them, recorded and fresh.
        recorded, fresh: the versions that answered.
        alpha: how often a model that did not change may be said to have another score; the same for another wording.
        simulated: whether anything comes from a simulator; None: it is not known.
    """

    findings: tuple[str, ...]
    canaries: int
    repeats: tuple[int, int]
    score: Scores
    wording: Wording
    recorded: tuple[Version, ...]
    fresh: tuple[Version, ...]
    alpha: float
    simulated: bool | None

    @property
    def verdict(self) -> str:
        """The gravest finding."""
        return self.findings[-1]

    @property
    def exit_code(self) -> int:
        """0, or 3 where the model drifted."""
        return EXIT_CODES[self.verdict]

    @property
    def drifted(self) -> bool:
        """Whether what was concluded from the recorded answers may not hold any more."""
        return self.exit_code != 0

    def to_json(self) -> dict[str, Any]:
        """One JSON-compatible object."""
        versions = {side: [{"model": model, "fingerprint": mark} for model, mark in getattr(self, side)] for side in ("recorded", "fresh")}
        return {**asdict(self), "verdict": self.verdict, "drifted": self.drifted, **versions}

    def text(self) -> str:
        """For a terminal."""
        mark = "SIMULATED " if self.simulated else ""
        what = {
            "same": "it answers as it did when it was recorded",
            "wording": "it answers in other words than recorded, and no worse or better",
            "score": "DRIFTED: its score is not what was recorded",
            "version": "DRIFTED: another version answers than was recorded",
        }[self.verdict]
        score, wording = self.score, self.wording
        versions = f"recorded {_versions(self.recorded)}; now {_versions(self.fresh)}"
        means = f"{100 * score.recorded:.1f}% recorded, {100 * score.fresh:.1f}% now on the same {self.canaries} canaries"
        interval = f"{100 * (1 - self.alpha):g}% interval {100 * score.ci_low:+.1f} to {100 * score.ci_high:+.1f}"
        own = "not known" if wording.within is None else f"{100 * wording.within:.1f}%"
        noise = f"{100 * wording.between:.1f}% of recorded and fresh answers differ, of answers of one time {own}"
        lines = [
            f"{mark}{self.verdict}: {what}",
            f"  version: {versions}",
            f"  score: {means}: {100 * score.difference:+.1f} points ({interval}), p = {score.p_value:.2g}",
            f"  wording: {wording.changed} canaries got no answer that was recorded; {noise}, p = {wording.p_value:.2g}",
            f"  p up to {self.alpha:g} counts; what repeats of one version differ by does not: permutation tests within canaries",
            f"  answers to each canary: {self.repeats[0]} recorded, {self.repeats[1]} fresh",
        ]
        if any(score.unscored):
            lines.append(f"  without a score: {score.unscored[0]} recorded and {score.unscored[1]} fresh answers, counted as wrong")
        return "\n".join(lines)


def compare(
    recorded: pa.Table,
    fresh: pa.Table,
    *,
    recorded_versions: Collection[Version],
    fresh_versions: Collection[Version],
    alpha: float,
    permutations: int = PERMUTATIONS,
) -> Drift:
    """Tell apart what happened to a model between two times.

    Args:
        recorded, fresh: outcomes tables of one candidate on the same examples; every example has as many answers as any other of its table.
        recorded_versions, fresh_versions: who gave the answers. A version, or a fingerprint, that one side never says is not compared.
        permutations: how many are drawn where p cannot be had exactly.

    Raises:
        EvaluationError: the tables are not about the same examples, or an example has more answers than another.
    """
    if not 0 < alpha < 1:
        raise EvaluationError(f"alpha is {alpha:g}", fix="give the error rate between 0 and 1, such as 0.01")
    before, after = _answers(recorded, "recorded"), _answers(fresh, "fresh")
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())
        raise EvaluationError(
            f"{len(only)} examples were answered at one time only, the first is {only[0]!r}", fix="compare the same examples"
        )
    score = _scores(before, after, alpha, permutations)
    wording = _wording(before, after, permutations)
    holds = {
        "wording": wording.p_value <= alpha,
        "score": score.p_value <= alpha,
        "version": any(_new([one[part] for one in recorded_versions], [one[part] for one in fresh_versions]) for part in (0, 1)),
    }
    marks = {*recorded["simulated"].to_pylist(), *fresh["simulated"].to_pylist()}
    return Drift(
        findings=tuple(name for name in FINDINGS if holds.get(name)) or ("same",),
        canaries=len(before),
        repeats=(_repeats(before), _repeats(after)),
        score=score,
        wording=wording,
        recorded=tuple(sorted(set(recorded_versions), key=str)),
        fresh=tuple(sorted(set(fresh_versions), key=str)),
        alpha=alpha,
        simulated=True if True in marks else None if None in marks else False,
    )


#: (score or None, what was said) of each answer, by example.
_Answers = dict[str, list[tuple[float | None, tuple[str, str | None]]]]


def _answers(table: pa.Table, which: str) -> _Answers:
    found: _Answers = {}
    for row in table.select(["example_id", "score", "output", "status"]).to_pylist():
        said = ("refused" if row["status"] == "refused" else "said", row["output"])
        found.setdefault(row["example_id"], []).append((row["score"], said))
    if not found:
        raise EvaluationError(f"there are no {which} answers", fix="compare at least one example")
    counts = sorted({len(rows) for rows in found.values()})
    if len(counts) > 1:
        raise EvaluationError(
            f"some examples have {counts[0]} {which} answers and others {counts[-1]}", fix="give every example as many answers"
        )
    return found


def _repeats(answers: _Answers) -> int:
    return len(next(iter(answers.values())))


def _new(recorded: list[str | None], fresh: list[str | None]) -> bool:
    """Whether something was said that never was before, by two sides that both say."""
    known, now = set(recorded) - {None}, set(fresh) - {None}
    return bool(known and now - known)


def _scores(before: _Answers, after: _Answers, alpha: float, permutations: int) -> Scores:
    values = np.array([[score or 0.0 for score, _ in (*before[example], *after[example])] for example in before])
    fresh = _repeats(after)
    old, new = values[:, :-fresh].mean(axis=1), values[:, -fresh:].mean(axis=1)
    interval = bootstrap_mean(new - old, (-1.0, 1.0), alpha)
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    unscored = [sum(score is None for rows in side.values() for score, _ in rows) for side in (before, after)]
    return Scores(
        recorded=float(old.mean()),
        fresh=float(new.mean()),
        difference=interval.estimate,
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=exact_p(values, fresh) if binary else _sum_p(values, fresh, permutations),
        unscored=(unscored[0], unscored[1]),
    )


def exact_p(right: Array, fresh: int) -> float:
    """Two-sided p of the number of right fresh answers: twice the smaller tail, given how many answers to each example are right.

    Args:
        right: shape (examples, answers), 0 or 1; the last `fresh` columns are the fresh answers.
    """
    from scipy.stats import hypergeom

    answers = right.shape[1]
    pooled = right.sum(axis=1).astype(int)
    law: Array = np.ones(1)
    for count in range(1, answers):  # where all or none are right, the fresh ones are for certain
        one = hypergeom.pmf(np.arange(fresh + 1), answers, count, fresh)
        for _ in range(int((pooled == count).sum())):
            law = np.convolve(law, one)
    open_ones = (pooled > 0) & (pooled < answers)
    seen = int(right[open_ones, -fresh:].sum())
    return float(min(1.0, 2 * min(law[: seen + 1].sum(), law[seen:].sum())))


def _sum_p(values: Array, fresh: int, permutations: int) -> float:
    """Two-sided p of the sum of the fresh scores: twice the smaller tail, by random permutations."""
    open_ones = values[np.ptp(values, axis=1) > 0]
    seen = float(open_ones[:, -fresh:].sum())
    below = above = 0
    for chosen in _drawn(len(open_ones), values.shape[1], fresh, permutations):
        sums = (chosen * open_ones).sum(axis=(1, 2))
        below += int(np.count_nonzero(sums <= seen + _TIE))
        above += int(np.count_nonzero(sums >= seen - _TIE))
    return min(1.0, 2 * (1 + min(below, above)) / (1 + permutations))


def _wording(before: _Answers, after: _Answers, permutations: int) -> Wording:
    texts = [[said for _, said in (*before[example], *after[example])] for example in before]
    equal = np.array([[[one == other for other in row] for one in row] for row in texts], dtype=np.float64)
    fresh, recorded = _repeats(after), _repeats(before)
    across = equal[:, :recorded, recorded:]
    sides = [(equal[:, :recorded, :recorded], recorded), (equal[:, recorded:, recorded:], fresh)]
    pairs = len(texts) * sum(size * (size - 1) for _, size in sides)
    alike = sum(float(side.sum()) - len(texts) * size for side, size in sides)
    seen = float(across.sum())
    noisy = equal[equal.min(axis=(1, 2)) == 0]  # elsewhere all answers are equal, however they are dealt
    certain = (len(texts) - len(noisy)) * recorded * fresh
    fewer = 0
    for chosen in _drawn(len(noisy), recorded + fresh, fresh, permutations):
        pairs_alike = np.einsum("kni,nij,knj->k", chosen, noisy, 1 - chosen) + certain
        fewer += int(np.count_nonzero(pairs_alike <= seen + _TIE))
    return Wording(
        changed=int((across.max(axis=(1, 2)) == 0).sum()),
        between=float(1 - across.mean()),
        within=1 - alike / pairs if pairs else None,
        p_value=(1 + fewer) / (1 + permutations),
    )


def _drawn(examples: int, answers: int, fresh: int, permutations: int) -> Iterator[Array]:
    """Which answers count as the fresh ones, `permutations` times: 0 or 1, in batches of shape (k, examples, answers)."""
    rng = np.random.default_rng(SEED)
    batch = max(1, _CELLS_AT_ONCE // max(1, examples * answers))
    for start in range(0, permutations, batch):
        keys = rng.random((min(batch, permutations - start), examples, answers))
        yield (keys.argsort(axis=2) < fresh).astype(np.float64)


def _versions(versions: Collection[Version]) -> str:
    return ", ".join(f"{model or 'an unknown version'}{f' ({mark})' if mark else ''}" for model, mark in versions) or "nothing"
