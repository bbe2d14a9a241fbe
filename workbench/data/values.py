"""Values of a row: made JSON-compatible, and made text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from workbench.data.problems import excerpt
from workbench.errors import DataError

#: Deeper values overflow the stack somewhere downstream (dataclasses, json, Arrow).
MAX_DEPTH = 64


def plain(value: Any, depth: int = 0) -> Any:
    """A Parquet value as JSON has it: dates and decimals become text, NaN becomes None (what pandas writes for a gap).

    Raises:
        DataError: bytes and other values that no JSON file could hold, or nesting deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise DataError(f"it is nested deeper than {MAX_DEPTH} levels", fix="flatten the value")
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case list() | tuple():
            return [plain(item, depth + 1) for item in value]
        case dict():
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
    raise DataError(f"a value of type {type(value).__name__} is not text", fix="convert the column to text")


def text(value: Any) -> str:
    """A JSON-compatible value as text.

    Text stays as it is; true and false are JSON's words; an integer 1 is "1"; a float keeps its point, so 1.0 stays "1.0"
    (guessing which was meant would change real decimals); a list or mapping becomes JSON.
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def field(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field that must be there and not null.

    Raises:
        DataError: naming the fields there are.
    """
    if name not in row:
        there = ", ".join(map(excerpt, row)) or "none"
        raise DataError(f"there is no field {name!r}; the fields are {there}", fix="correct the row, or the field's name in the recipe")
    if row[name] is None:
        raise DataError(f"field {name!r} is empty (null)", fix="fill it in or remove the row")
    return row[name]
