"""Reading other tools' files: shared by the importers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError

Row = dict[str, Any]


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        EvaluationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"cannot be read: {error.strerror}", where=str(path), fix="check the path") from error


def parse_json(text: bytes, where: str) -> Any:
    """A JSON value; NaN and Infinity, which both tools write, are let through.

    Raises:
        EvaluationError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"not JSON: {str(error)[:200]}", where=where, fix="check that the log is complete") from error


def read_json(path: Path) -> Any:
    """The JSON value of a whole file; raises what `read_bytes` and `parse_json` raise."""
    return parse_json(read_bytes(path), str(path))


def convert(samples: Iterable[Any], to_row: Callable[[Any], Row], *, where: str, tool: str) -> list[Row]:
    """Apply `to_row` to every sample.

    Raises:
        EvaluationError: a sample is not shaped as the tool writes it; names its number, from 1.
    """
    rows = []
    for number, sample in enumerate(samples, start=1):
        try:
            rows.append(to_row(sample))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise EvaluationError(
                f"not shaped as {tool} writes it: {type(error).__name__} {error}",
                where=f"{where}, sample {number}",
                fix="log it again with a current version of the tool",
            ) from error
    return rows


def choose(metric: str | None, available: Sequence[str], where: str) -> str:
    """The metric that was asked for, or the first.

    Raises:
        EvaluationError: the log has no such metric, or none at all.
    """
    if not available:
        raise EvaluationError("the log holds no scores", where=where, fix="score it first")
    if metric is None:
        return available[0]
    if metric not in available:
        raise EvaluationError(f"the log has no metric {metric!r}", where=where, fix=f"one of {', '.join(available)}")
    return metric


def score(value: Any, metric: str, available: Sequence[str], where: str) -> float | None:
    """A metric's value as a score; None where it is NaN, with which both tools mark what could not be scored.

    Raises:
        EvaluationError: it is not a number from 0 to 1.
    """
    if isinstance(value, int | float):
        if math.isnan(value):
            return None
        if 0 <= value <= 1:
            return float(value)
    others = [name for name in available if name != metric]
    raise EvaluationError(
        f"metric {metric!r} holds {repr(value)[:60]}, and a score is from 0 to 1",
        where=where,
        fix=f"choose another: {', '.join(others)}" if others else "the log has no other metric; score it with one from 0 to 1",
    )
