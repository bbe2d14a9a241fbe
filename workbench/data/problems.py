"""Bad rows are collected, so that one look at the message repairs the file."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import DataError

SHOWN = 10


def excerpt(value: object, length: int = 60) -> str:
    """A value as it may stand in a message: quoted, on one line, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


class Problems:
    """The rows of one file that cannot be used.

    Args:
        path: the file, for the message.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._count, self._first = path, 0, list[str]()

    def add(self, row: int, problem: DataError) -> None:
        """Note that `row` (from 1) cannot be used."""
        self._count += 1
        if len(self._first) < SHOWN:
            fix = f" (fix: {problem.fix})" if problem.fix else ""
            self._first.append(f"{self._path.name}, row {row}: {problem.what}{fix}")

    def refuse(self) -> None:
        """Raise one `DataError` with the first ten problems and their number, if there are any."""
        if not self._count:
            return
        shown = "\n  ".join(self._first)
        more = f"\n  ... and {self._count - SHOWN} more" if self._count > SHOWN else ""
        raise DataError(
            f"{self._count} {'row' if self._count == 1 else 'rows'} cannot be used:\n  {shown}{more}",
            where=str(self._path),
            fix="correct or remove these rows",
        )
