"""Numeric: the last number of the output equals the reference, within a relative tolerance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task

# A sign counts only where no word, digit or point stands before it: "5-7" is two numbers, "GPT-4" one.
# Thousands are groups of three behind a comma, underscore, apostrophe or (narrow) no-break space; the decimal mark is a point.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.])[-+\u2212])?"
    r"(?P<digits>(?:(?<![\d.])\d{1,3}(?:[,_'\u2019\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,4}(?!\d))?"
    r"(?P<percent>\s?%)?"
)
_LARGEST_EXPONENT = 400  # beyond what a float can hold; nobody's answer, and slow to compute with


@dataclass(frozen=True)
class _Number:
    value: Decimal
    percent: bool


def numbers(text: str) -> list[_Number]:
    """Every number in a text, in order: `-1,234.5`, `1e-3`, `.5`, `12 %`."""
    found = []
    for match in _NUMBER.finditer(text):
        digits = re.sub(r"[^\d.]", "", match["digits"]) + (match["exponent"] or "")
        value = Decimal(digits)
        if value.adjusted() > _LARGEST_EXPONENT or value.adjusted() < -_LARGEST_EXPONENT:
            continue
        found.append(_Number(-value if match["sign"] in ("-", "\u2212") else value, match["percent"] is not None))
    return found


@dataclass(frozen=True)
class Numeric:
    """1.0 when |output - reference| <= tolerance * |reference|, in decimal arithmetic.

    Where only one side has a percent sign, 50% may mean 50 or 0.5: either reading counts.
    """

    tolerance: float

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        answers = numbers(output)

        def compare(reference: str) -> Score:
            wanted = numbers(reference)
            if len(wanted) != 1:
                return Score(None, reason=f"the reference holds {len(wanted)} numbers, not one")
            if not answers:
                return Score(0.0, False, "the output holds no number")
            return Score(float(self._equal(answers[-1], wanted[0])), True)

        return best(references, compare)

    def _equal(self, answer: _Number, wanted: _Number) -> bool:
        readings = [(answer.value, wanted.value)]
        if answer.percent and not wanted.percent:
            readings.append((answer.value / 100, wanted.value))
        if wanted.percent and not answer.percent:
            readings.append((answer.value, wanted.value / 100))
        tolerance = Decimal(repr(self.tolerance))
        return any(abs(a - b) <= tolerance * abs(b) for a, b in readings)


def build(task: Task, base: Path) -> Numeric:
    """Uses `task.tolerance`."""
    return Numeric(task.tolerance)
