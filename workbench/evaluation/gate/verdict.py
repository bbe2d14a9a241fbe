"""What the gate says: as an object, as JSON, and in words that a stranger understands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.evaluation.gate.floors import Floor
from workbench.evaluation.gate.looks import Look
from workbench.evaluation.gate.pairing import Unscored

EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}


def worst(verdicts: list[str]) -> str:
    """FAIL if any fails, else INCONCLUSIVE if any is, else PASS."""
    return next((verdict for verdict in ("FAIL", "INCONCLUSIVE") if verdict in verdicts), "PASS")


@dataclass(frozen=True)
class Comparison:
    """Candidate against baseline on all examples, or on one slice.

    Attributes:
        name: `all`, or the slice as `field=value`.
        verdict: PASS where ci_low > -margin, FAIL where ci_high < -margin, else INCONCLUSIVE.
        candidate, baseline: mean scores, 0 to 1.
        difference: candidate - baseline.
        ci_low, ci_high: one-sided bounds of the difference, each by itself.
        n: examples; in sequential mode those that were looked at.
        discordance: share of examples on which the scores differ.
        method: how the bounds were found, in words.
        too_small: no table of so few examples could pass.
        needed: further examples after which it would pass with probability 0.8, if the true difference and spread are the observed
            ones; 0 after a verdict, None where no number would (the observed difference is at or beyond the margin).
        mde: the least true difference that n examples pass with probability 0.8, at the observed spread; None: none, or not known.
    """

    name: str
    verdict: str
    candidate: float
    baseline: float
    difference: float
    ci_low: float
    ci_high: float
    n: int
    discordance: float
    method: str
    too_small: bool
    needed: int | None
    mde: float | None


@dataclass(frozen=True)
class Verdict:
    """The gate's verdict, all of it.

    Attributes:
        verdict: the worst of the comparison, its slices and the floors.
        candidate, baseline: their names.
        overall, slices: the comparisons; every slice is required.
        floors: what else is required.
        margin: how much lower the mean score may be.
        alpha: as asked for; each bound was found at `level`.
        level: `alpha`, or less at a look at the test set that is counted.
        look: which look at this test set it was; None: not counted.
        unscored: rows without a score, and what became of them.
        repeats: most answers to one example, of candidate and baseline; they are averaged.
        stopped_at: sequential mode: after how many examples everything was decided; None: never, or another mode.
        simulated: whether anything comes from a simulator; None: it is not known, and not fit for production.
    """

    verdict: str
    candidate: str
    baseline: str
    overall: Comparison
    slices: tuple[Comparison, ...]
    floors: tuple[Floor, ...]
    margin: float
    alpha: float
    level: float
    look: Look | None
    unscored: Unscored
    repeats: tuple[int, int]
    stopped_at: int | None
    simulated: bool | None

    @property
    def exit_code(self) -> int:
        """0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """One JSON-compatible object; `ci_low` and `ci_high` are the one-sided 1 - `level` bounds that decide."""
        overall = asdict(self.overall)
        names = {"candidate": self.candidate, "baseline": self.baseline}
        scores = {f"{name}_score": overall.pop(name) for name in names}
        del overall["name"], overall["verdict"]
        return {
            "verdict": self.verdict,
            **names,
            **scores,
            **overall,
            "margin": self.margin,
            "alpha": self.alpha,
            "level": self.level,
            "look": None if self.look is None else self.look.number,
            "comparison": self.overall.verdict,
            "slices": [asdict(one) for one in self.slices],
            "floors": [asdict(one) for one in self.floors],
            "unscored": asdict(self.unscored),
            "repeats": list(self.repeats),
            "stopped_at": self.stopped_at,
            "simulated": self.simulated,
        }

    def text(self) -> str:
        """For a terminal."""
        marks = {True: "  SIMULATED: not evidence about a real model", None: "  it is not known whether these outcomes are simulated"}
        mark = "SIMULATED " if self.simulated else ""
        lines = [f"{mark}{self.verdict}: {self._sentence()}"]
        if self.simulated is not False:
            lines.append(marks[self.simulated])
        lines += [f"  {line}" for line in (*_comparison(self.overall, self), *self._conditions())]
        for title, rows in (
            ("every one of these slices has to pass as well:", [_slice(one) for one in self.slices]),
            ("and every one of these limits:", [_floor(one) for one in self.floors]),
        ):
            lines += [f"  {title}", *(f"    {row}" for row in rows)] if rows else []
        return "\n".join(lines)

    def _sentence(self) -> str:
        what = f"as good as {self.baseline}, or worse by less than {_points(self.margin)}"
        failed = [one.name for one in self.slices if one.verdict == self.verdict]
        failed += [one.name for one in self.floors if one.verdict == self.verdict]
        if self.verdict == "PASS":
            return f"{self.candidate} is {what}"
        if self.overall.verdict == self.verdict == "FAIL":
            return f"{self.candidate} is worse than {self.baseline} by {_points(self.margin)} or more"
        if self.overall.verdict == self.verdict:
            return f"these {self.overall.n} examples do not show whether {self.candidate} is {what}"
        return f"{self.candidate} {'misses' if self.verdict == 'FAIL' else 'may miss'} what is required: {', '.join(failed)}"

    def _conditions(self) -> list[str]:
        """What a reader has to know beside the numbers."""
        found = [f"method: {self.overall.method}"]
        if self.look is not None:
            found.append(
                f"look {self.look.number} at this test set: judged at alpha {self.level:.2g} instead of {self.alpha:g}, "
                "so that all looks together err no more often"
            )
        if self.stopped_at is not None:
            found.append(f"stopped after {self.stopped_at} examples; it may be looked at after every one")
        if max(self.repeats) > 1:
            found.append(
                f"up to {self.repeats[0]} answers of the candidate and {self.repeats[1]} of the baseline to one example are averaged"
            )
        rows = self.unscored
        if rows.candidate or rows.baseline:
            what = {
                "fail": "they count against the candidate: 0 for it, 1 for the baseline",
                "exclude": f"{rows.excluded} examples are left out",
            }[rows.policy]
            kinds = ", ".join(f"{count} {status}" for status, count in rows.statuses.items())
            found.append(f"without a score: {rows.candidate} of the candidate's rows, {rows.baseline} of the baseline's ({kinds}); {what}")
        return found


def _comparison(one: Comparison, verdict: Verdict) -> list[str]:
    means = f"mean score {_percent(one.candidate)} against {_percent(one.baseline)} on the same {one.n} examples"
    sure = f"{100 * (1 - verdict.level):.4g}% confidence"
    lines = [
        f"{means}: {_signed(one.difference)} points",
        f"with {sure} the true difference is above {_signed(one.ci_low)} points, and with the same below {_signed(one.ci_high)}",
    ]
    if one.verdict == "INCONCLUSIVE":
        lines.append(_needed(one))
    if one.mde is not None:
        lines.append(f"so many examples pass, 4 times in 5, a candidate whose true difference is {_signed(one.mde)} or better")
    return lines


def _needed(one: Comparison) -> str:
    if one.needed is None:
        return "more examples are not expected to make it pass: the observed difference is at the margin or beyond"
    small = "no table of so few examples can pass; " if one.too_small else ""
    return f"{small}{one.needed} more examples would let it pass 4 times in 5, if the true difference and spread are the observed ones"


def _slice(one: Comparison) -> str:
    note = f"; {_needed(one)}" if one.verdict == "INCONCLUSIVE" else ""
    return f"{one.verdict:<12} {one.name}: {_signed(one.difference)} ({_signed(one.ci_low)} to {_signed(one.ci_high)}), n = {one.n}{note}"


def _floor(one: Floor) -> str:
    least = one.name == "score" or one.name.startswith("guard ")
    bounds = "" if one.low == one.high else f" ({_number(one.low)} to {_number(one.high)})"
    wanted = f"{'at least' if least else 'at most'} {one.limit:g}"
    return f"{one.verdict:<12} {one.name} {wanted}: {_number(one.value)}{bounds}, n = {one.n}; {one.method}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _points(value: float) -> str:
    return f"{100 * value:.4g} {'point' if value == 0.01 else 'points'}"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"
