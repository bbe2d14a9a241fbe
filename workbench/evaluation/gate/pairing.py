"""Two outcomes tables, example by example."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workbench.errors import EvaluationError

Array = npt.NDArray[np.float64]

_NAMED = 3  # how many ids a message names
MISSING = "(missing)"  # the slice of examples without the field


@dataclass(frozen=True)
class Unscored:
    """Rows without a score, and what became of them.

    Attributes:
        policy: fail, exclude or refuse.
        candidate, baseline: rows of each table that have none.
        excluded: examples that were left out because of them.
        statuses: how many rows there are of each status other than scored, in both tables.
    """

    policy: str
    candidate: int
    baseline: int
    excluded: int
    statuses: Mapping[str, int]


@dataclass(frozen=True)
class Pairs:
    """What both sides scored on each example, in the order of the candidate's table. Repeats of an example are averaged on each side.

    Attributes:
        ids: shape (n,).
        candidate, baseline: scores, shape (n,).
        clusters: shape (n,), or None where every example is independent.
        metadata: shape (n,), the candidate's, or the baseline's where the candidate has none.
        repeats: most answers to one example, of each side.
        unscored: what became of rows without a score.
    """

    ids: tuple[str, ...]
    candidate: Array
    baseline: Array
    clusters: tuple[str, ...] | None
    metadata: tuple[Mapping[str, Any], ...]
    repeats: tuple[int, int]
    unscored: Unscored

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def difference(self) -> Array:
        return self.candidate - self.baseline

    @property
    def binary(self) -> bool:
        return bool(np.isin(self.candidate, (0.0, 1.0)).all() and np.isin(self.baseline, (0.0, 1.0)).all())

    def take(self, rows: Sequence[int]) -> Pairs:
        """Some of the examples."""
        chosen = list(rows)
        return Pairs(
            tuple(self.ids[row] for row in chosen),
            self.candidate[chosen],
            self.baseline[chosen],
            None if self.clusters is None else tuple(self.clusters[row] for row in chosen),
            tuple(self.metadata[row] for row in chosen),
            self.repeats,
            self.unscored,
        )

    def slices(self, wanted: Sequence[str]) -> dict[str, Pairs]:
        """The required slices, by `field=value`; raises what `slices` raises."""
        return {name: self.take(rows) for name, rows in slices(self.metadata, wanted).items()}


def slices(metadata: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each required slice, by `field=value`. A field by itself stands for all its values, and for the rows without it.

    Raises:
        EvaluationError: no row has the field, or the value.
    """
    found: dict[str, list[int]] = {}
    for text in wanted:
        field, equals, value = text.partition("=")
        values = [_text(row[field]) if field in row else MISSING for row in metadata]
        if all(one == MISSING for one in values):
            known = sorted({name for row in metadata for name in row})
            fix = f"its fields are {', '.join(known)}" if known else "give every row its fields in the column `metadata`"
            raise EvaluationError(f"no example has the field {field!r} in its metadata", where="slices", fix=fix)
        if equals and value not in values:
            raise EvaluationError(f"no example has {field}={value}", where="slices", fix=f"it is {' or '.join(sorted(set(values))[:8])}")
        for one in [value] if equals else sorted(set(values)):
            found[f"{field}={one}"] = [row for row, other in enumerate(values) if other == one]
    return found


def choose(table: pa.Table, name: str | None, *, option: str, where: str) -> pa.Table:
    """The rows of one candidate, of a table that may hold several.

    Raises:
        EvaluationError: the table has no rows, none of that name, or several names and none was chosen.
    """
    names = sorted(set(table["candidate"].to_pylist()))
    if not names:
        raise EvaluationError("there are no outcomes", where=where, fix="give a table with at least one row")
    if name is None and len(names) > 1:
        raise EvaluationError(f"several candidates: {', '.join(names)}", where=where, fix=f"choose one with {option}")
    if name is not None and name not in names:
        raise EvaluationError(f"no candidate {name!r}", where=where, fix=f"choose among {', '.join(names)} with {option}")
    wanted = names[0] if name is None else name
    return table.filter(pa.array([one == wanted for one in table["candidate"].to_pylist()]))


def pair(candidate: pa.Table, baseline: pa.Table, *, unscored: str = "fail") -> Pairs:
    """Match the rows of one candidate with those of one baseline, by example_id.

    Args:
        candidate, baseline: outcomes tables, each of one candidate.
        unscored: `fail` counts a row without a score against the candidate, as 0 for it and as 1 for the baseline; `exclude` leaves
            out every example that has such a row on either side; `refuse` raises.

    Raises:
        EvaluationError: the tables are not about the same examples (the difference is listed), the clusters disagree, no example
            is left, or a row has no score and that is refused.
    """
    ours, theirs = _by_example(candidate), _by_example(baseline)
    _same_examples(ours, theirs)
    empty = {side: [row["example_id"] for rows in table.values() for row in rows if row["score"] is None]
             for side, table in (("candidate", ours), ("baseline", theirs))}  # fmt: skip
    if unscored == "refuse" and (empty["candidate"] or empty["baseline"]):
        first = (empty["candidate"] + empty["baseline"])[0]
        raise EvaluationError(
            f"{len(empty['candidate'])} of the candidate's rows and {len(empty['baseline'])} of the baseline's have no score, the first "
            f"for example {first!r}",
            fix="score them, or say how they count: unscored: fail or exclude",
        )
    left_out = {*empty["candidate"], *empty["baseline"]} if unscored == "exclude" else set()
    kept = [example for example in ours if example not in left_out]
    if not kept:
        raise EvaluationError("no example is left: each has a row without a score", fix="score them, or count them: unscored: fail")
    statuses = [row["status"] for table in (ours, theirs) for rows in table.values() for row in rows if row["score"] is None]
    return Pairs(
        tuple(kept),
        np.array([_mean(ours[example], 0.0) for example in kept]),
        np.array([_mean(theirs[example], 1.0) for example in kept]),
        _clusters([(example, ours[example] + theirs[example]) for example in kept]),
        tuple(_metadata(ours[example] + theirs[example]) for example in kept),
        (max(map(len, ours.values())), max(map(len, theirs.values()))),
        Unscored(
            unscored,
            len(empty["candidate"]),
            len(empty["baseline"]),
            len(left_out),
            {status: statuses.count(status) for status in sorted(set(statuses))},
        ),
    )


_Rows = list[dict[str, Any]]


def _by_example(table: pa.Table) -> dict[str, _Rows]:
    found: dict[str, _Rows] = {}
    for row in table.select(["example_id", "score", "cluster", "metadata", "status"]).to_pylist():
        found.setdefault(row["example_id"], []).append(row)
    return found


def _same_examples(ours: Mapping[str, _Rows], theirs: Mapping[str, _Rows]) -> None:
    differences = []
    for name, these, those in (("candidate", ours, theirs), ("baseline", theirs, ours)):
        only = [example for example in these if example not in those]
        if only:
            more = ", ..." if len(only) > _NAMED else ""
            differences.append(f"{len(only)} only the {name} has ({', '.join(only[:_NAMED])}{more})")
    if differences:
        shared = sum(example in theirs for example in ours)
        raise EvaluationError(
            f"the tables are not about the same examples: {' and '.join(differences)}; {shared} are in both",
            fix="let both answer the same examples, under the same example_id",
        )


def _mean(rows: _Rows, without: float) -> float:
    return sum(without if row["score"] is None else row["score"] for row in rows) / len(rows)


def _clusters(examples: Sequence[tuple[str, _Rows]]) -> tuple[str, ...] | None:
    """The cluster of each example; one without is a cluster of its own. None where no cluster has two examples."""
    found = []
    for example, rows in examples:
        names = {row["cluster"] for row in rows if row["cluster"] is not None}
        if len(names) > 1:
            raise EvaluationError(f"example {example!r} is in several clusters: {', '.join(sorted(names))}", fix="give it one cluster")
        found.append(f"cluster {names.pop()}" if names else f"example {example}")
    return tuple(found) if len(set(found)) < len(found) else None


def _metadata(rows: _Rows) -> Mapping[str, Any]:
    return next((found for row in rows if (found := json.loads(row["metadata"]))), {})


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
