"""Train, validation, calibration, test: disjoint by content, decided by a hash, never by the position in a file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from workbench.data.example import Example
from workbench.data.problems import excerpt
from workbench.errors import DataError
from workbench.recipe.schema import SPLITS, Limits, Split, SplitShares

SHOWN = 5  # duplicates, conflicts and contaminated prompts that are shown
MAX_LABELS = 256  # more distinct answers are no label set, and are not counted


@dataclass(frozen=True)
class Report:
    """How the rows were divided.

    Attributes:
        rows: rows read for each origin: "source" and the splits with a file of their own.
        duplicates: rows left out because an earlier row of the same file asks the same.
        conflicts: prompts that occur with different answers in one file (the first answer was kept).
        conflict_examples: up to five of them, with file and row.
        sizes: rows of each split, after the limits.
        labels: how often each answer occurs, by split; None where the answers are no small set.
    """

    rows: dict[str, int]
    duplicates: int
    conflicts: int
    conflict_examples: tuple[str, ...]
    sizes: dict[str, int]
    labels: dict[str, dict[str, int]] | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-compatible copy; `from_json` reverses it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Report:
        """Read what `to_json` wrote."""
        return cls(**value | {"conflict_examples": tuple(value["conflict_examples"])})


@dataclass(frozen=True)
class SplitSet:
    """The four splits, each in the order of its hashes, and how they came about."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    calibration: tuple[Example, ...]
    test: tuple[Example, ...]
    report: Report

    def __getitem__(self, split: Split) -> tuple[Example, ...]:
        return {"train": self.train, "validation": self.validation, "calibration": self.calibration, "test": self.test}[split]

    def write(self, directory: Path) -> None:
        """Write `train.jsonl`, `validation.jsonl`, `calibration.jsonl`, `test.jsonl` and `report.json` into an existing folder."""
        for split in SPLITS:
            lines = (json.dumps(example.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for example in self[split])
            (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        report = json.dumps(self.report.to_json(), ensure_ascii=False, indent=2) + "\n"
        (directory / "report.json").write_text(report, encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, directory: Path) -> SplitSet:
        """Read what `write` wrote."""
        report = Report.from_json(json.loads((directory / "report.json").read_text(encoding="utf-8")))
        train, validation, calibration, test = (_read_examples(directory / f"{split}.jsonl") for split in SPLITS)
        return cls(train, validation, calibration, test, report)


def _read_examples(path: Path) -> tuple[Example, ...]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return tuple(Example.from_json(json.loads(line)) for line in file)


@dataclass(frozen=True)
class Distinct:
    """The first of every group of rows that ask the same, and what was left out.

    Attributes:
        examples: in the order given.
        duplicates: rows left out.
        conflicts: groups whose answers differ.
        conflict_examples: up to five of them.
    """

    examples: tuple[Example, ...]
    duplicates: int
    conflicts: int
    conflict_examples: tuple[str, ...]


def distinct(examples: Iterable[Example]) -> Distinct:
    """Leave out every row whose content stood in an earlier one; splits and guard sets need it, ids being made of the content."""
    kept: dict[str, Example] = {}
    conflicts: dict[str, str] = {}
    count = 0
    for example in examples:
        count += 1
        first = kept.setdefault(example.content_key, example)
        if (first.references, first.answer) != (example.references, example.answer):
            answers = f"{excerpt(first.references[0], 40)} ({first.where}) and {excerpt(example.references[0], 40)} ({example.where})"
            conflicts.setdefault(example.content_key, f"{_prompt_excerpt(first)}: {answers}")
    shown = tuple(list(conflicts.values())[:SHOWN])
    return Distinct(tuple(kept.values()), count - len(kept), len(conflicts), shown)


def divide(
    examples: Sequence[Example],
    held_out: Mapping[Split, Sequence[Example]],
    shares: SplitShares,
    limits: Limits,
    *,
    needed: Collection[Split] = ("train", "validation", "test"),
) -> SplitSet:
    """Divide the rows of `data.source`, and put the held-out files beside them.

    Duplicates within a file are left out first. A row's place in [0, 1) is a hash of its content and the seed, so that neither
    the order of the file nor further rows move it to another split; the shares cut [0, 1) in the order train, validation,
    calibration, test. A split with a file of its own takes no rows of the source: its share falls to train, and the rows of the
    other splits are the same as without the file. A limit keeps the rows with the smallest hashes.

    Args:
        examples: the rows of `data.source`.
        held_out: the rows of each split that has a file of its own.
        shares: share of each split, and the seed.
        limits: most rows of each split.
        needed: splits that must not be empty.

    Raises:
        DataError: a prompt that stands in two files, or a needed split without rows.
    """
    origins: dict[str, Distinct] = {"source": distinct(examples), **{split: distinct(rows) for split, rows in held_out.items()}}
    contamination({f"data.{'source' if name == 'source' else f'held_out.{name}'}": origin.examples for name, origin in origins.items()})

    placed: dict[Split, list[tuple[float, Example]]] = {split: [] for split in SPLITS}
    for example in origins["source"].examples:
        place = _place(example, shares.seed)
        split = _split_at(place, shares)
        placed["train" if split in held_out else split].append((place, example))
    for split in held_out:
        placed[split] = [(_place(example, shares.seed), example) for example in origins[split].examples]

    chosen: dict[Split, tuple[Example, ...]] = {}
    for split, rows in placed.items():
        if not rows and split in needed:
            share = "its file holds no row" if split in held_out else f"its share is {getattr(shares, split):g} of {len(examples)} rows"
            fix = f"give it rows: a larger data.split.{split}" + ("" if split == "train" else f", or a file as data.held_out.{split}")
            raise DataError(f"the split {split!r} is empty: {share}", where="data.split", fix=fix)
        rows.sort(key=lambda row: (row[0], row[1].content_key))
        chosen[split] = tuple(example for _, example in rows[: getattr(limits, split)])

    report = Report(
        rows={"source": len(examples), **{split: len(rows) for split, rows in held_out.items()}},
        duplicates=sum(origin.duplicates for origin in origins.values()),
        conflicts=sum(origin.conflicts for origin in origins.values()),
        conflict_examples=tuple(text for origin in origins.values() for text in origin.conflict_examples)[:SHOWN],
        sizes={split: len(rows) for split, rows in chosen.items()},
        labels=_labels(chosen),
    )
    return SplitSet(chosen["train"], chosen["validation"], chosen["calibration"], chosen["test"], report)


def contamination(named_sets: Mapping[str, Iterable[Example]]) -> None:
    """Refuse prompts that stand in two of the sets, such as train and a guard set.

    Raises:
        DataError: with the number of prompts for each pair of sets and up to five of them.
    """
    keyed = {name: {example.content_key: example for example in examples} for name, examples in named_sets.items()}
    found = []
    for (one, first), (other, second) in combinations(keyed.items(), 2):
        shared = [key for key in first if key in second]
        if shared:
            lines = [f"{_prompt_excerpt(first[key])} ({first[key].where}; {second[key].where})" for key in shared[:SHOWN]]
            more = [f"... and {len(shared) - SHOWN} more"] if len(shared) > SHOWN else []
            stand = "1 prompt stands" if len(shared) == 1 else f"{len(shared)} prompts stand"
            found.append("\n    ".join([f"{stand} in both {one} and {other}:", *lines, *more]))
    if found:
        fix = "remove these rows from one of the two: a model must not be judged on what it learned"
        raise DataError("contamination: " + "\n  ".join(found), fix=fix)


def _place(example: Example, seed: int) -> float:
    """Where in [0, 1) a row falls: 53 bits of SHA-256 over seed and content."""
    head = hashlib.sha256(f"{seed}:{example.content_key}".encode()).digest()[:8]
    return (int.from_bytes(head, "big") >> 11) / 2**53


def _split_at(place: float, shares: SplitShares) -> Split:
    edge, last = 0.0, SPLITS[0]
    for split in SPLITS:
        share: float = getattr(shares, split)
        if share:
            edge, last = edge + share, split
            if place < edge:
                return split
    return last  # the shares add up to 1 only within rounding


def _labels(chosen: Mapping[Split, Sequence[Example]]) -> dict[str, dict[str, int]] | None:
    counts = {split: Counter(example.references[0] for example in examples) for split, examples in chosen.items()}
    if len({answer for counter in counts.values() for answer in counter}) > MAX_LABELS:
        return None
    return {split: dict(sorted(counter.items())) for split, counter in counts.items()}


def _prompt_excerpt(example: Example) -> str:
    if isinstance(example.prompt, str):
        return excerpt(example.prompt)
    return excerpt(next((m["content"] for m in reversed(example.prompt) if m["role"] == "user" and "content" in m), example.prompt))
