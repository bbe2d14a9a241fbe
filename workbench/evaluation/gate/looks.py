"""How often a test set was looked at. Every look is one more chance for a bad candidate, so each is judged more strictly.

Look k is judged at alpha * 6 / (pi^2 k^2); over any number of looks that adds up to alpha.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from workbench.digest import digest
from workbench.errors import disk_faults

FILE = "looks.jsonl"


@dataclass(frozen=True)
class Look:
    """One look at a test set.

    Attributes:
        number: 1 for the first.
        alpha: what it is judged at.
    """

    number: int
    alpha: float


def take(state: Path, test: str, subject: str, alpha: float) -> Look:
    """Count a look and return it. To ask again about the same subject is the same look.

    Args:
        state: the state directory; its `looks.jsonl` is appended to, one JSON object a line. Safe against other processes and kills.
        test: digest of the test set.
        subject: digest of what is judged on it.
        alpha: the error rate over all looks together.

    Raises:
        StoreError: the disk is full or not writable.
    """
    path = state / FILE
    with disk_faults(f"counting the look in {path}"):
        state.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            written = file.read()
            subjects = _subjects(written.decode("utf-8", "replace").splitlines(), test)
            if subject not in subjects:
                # A writer that was killed within its line leaves a piece without an end; the next line must not grow onto it.
                start = b"\n" if written and not written.endswith(b"\n") else b""
                file.write(start + json.dumps({"test": test, "subject": subject}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                subjects.append(subject)
    number = subjects.index(subject) + 1
    return Look(number, level(alpha, number))


def level(alpha: float, number: int) -> float:
    """What look `number` (from 1) is judged at."""
    return alpha * 6 / (math.pi * number) ** 2


def test_digest(table: pa.Table) -> str:
    """The digest of the examples in an outcomes table: their ids and references, in any order."""
    return digest(sorted({*zip(table["example_id"].to_pylist(), (text or "" for text in table["reference"].to_pylist()), strict=True)}))


def subject_digest(table: pa.Table) -> str:
    """The digest of what was judged: who answered, and every score."""
    names = ("candidate", "example_id", "repeat", "score")
    return digest(sorted(map(list, zip(*(table[name].to_pylist() for name in names), strict=True)), key=lambda row: row[:3]))


def _subjects(lines: Sequence[str], test: str) -> list[str]:
    """The subjects that looked at a test set, in order."""
    found: dict[str, None] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a piece of a line, whose writer was killed before it judged anything
        if isinstance(entry, dict) and entry.get("test") == test and isinstance(entry.get("subject"), str):
            found[entry["subject"]] = None
    return list(found)
