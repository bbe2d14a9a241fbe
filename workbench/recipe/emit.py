"""Values as YAML text that every YAML 1.1 and 1.2 reader takes for the same value."""

from __future__ import annotations

import json
import re
from typing import Any

from workbench.recipe.document import resolve

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*( [A-Za-z0-9._/-]+)*")
_TRUTH_IN_1_1 = {"y", "n", "yes", "no", "on", "off"}


def flow(value: Any) -> str:
    """A value on one line: `{source: a.jsonl, seed: 3}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A null, bool, int, float or text on one line, quoted where it must be."""
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) and resolve(value) == value and value.casefold() not in _TRUTH_IN_1_1 else quoted(value)
    if isinstance(value, float):
        # YAML 1.1 wants a dot before the exponent.
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return json.dumps(value)


def quoted(text: str) -> str:
    """A text in double quotes."""
    return "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
