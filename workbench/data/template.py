"""`task.prompt`: text with {field} for a field of the row.

Not `str.format`: a field's name may hold spaces or dots and is never evaluated, and the message names the row's fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workbench.data.problems import excerpt
from workbench.data.values import field, text
from workbench.errors import DataError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


class Template:
    """A parsed template.

    Args:
        source: the template; `{{` and `}}` stand for literal braces.

    Raises:
        DataError: a brace that is neither doubled nor part of a {field}, or a template without any field.
    """

    def __init__(self, source: str) -> None:
        self._pieces: list[tuple[str, str]] = []  # (literal text, the field that follows it)
        literal, start = "", 0
        for match in _PIECE.finditer(source):
            literal += source[start : match.start()]
            start = match.end()
            if match[1] is not None:
                self._pieces.append((literal, match[1]))
                literal = ""
            elif len(match[0]) == 2:
                literal += match[0][0]
            else:
                raise DataError(
                    f"a lone {match[0]!r} at character {match.start() + 1} of {excerpt(source)}",
                    where="task.prompt",
                    fix="write {field} for a field of the row, and {{ or }} for a literal brace",
                )
        if not self._pieces:
            raise DataError(
                f"{excerpt(source)} names no field, so every row would ask the same",
                where="task.prompt",
                fix="write {field} where a field of the row belongs",
            )
        self._tail = literal + source[start:]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it uses, each once, in the order of their first use."""
        return tuple(dict.fromkeys(name for _, name in self._pieces))

    def fill(self, values: Mapping[str, Any]) -> str:
        """Put the values in; numbers, booleans and nested values become text as `values.text` says.

        Raises:
            DataError: a field that is missing or null; the message lists the fields there are.
        """
        return "".join(literal + text(field(values, name)) for literal, name in self._pieces) + self._tail
