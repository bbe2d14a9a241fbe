"""The one exception hierarchy.

A message says *what* is wrong, *where*, and *how to fix it*; the command line prints it as it stands, without a
traceback, and exits with the class's `exit_code`. Anything else that reaches the user is a bug in Workbench.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager


class WorkbenchError(Exception):
    """Something the user can put right.

    Args:
        what: one sentence, no trailing newline.
        where: a location such as `recipe.yaml:3:7` or `train.jsonl, row 12`; printed first.
        fix: what to do about it; printed last.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class RecipeError(WorkbenchError):
    """The recipe is wrong; carries every problem found, not only the first."""

    def __init__(self, problems: list[WorkbenchError]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class SourceError(WorkbenchError):
    """A model or data source cannot be used: missing, damaged, not pinned, unsafe."""


class DataError(WorkbenchError):
    """A data row, or a data set as a whole, cannot be used."""


class TrainingError(WorkbenchError):
    """Training stopped, or never started, for a reason the recipe or the data can cure."""


class QuantizationError(WorkbenchError):
    """A model cannot be quantised as the recipe asks."""


class EvaluationError(WorkbenchError):
    """Examples cannot be answered or scored as the recipe asks."""


class EnvironmentFault(WorkbenchError):
    """Not the recipe's fault: the network, the disk, a crashed child process, a missing package."""

    exit_code = 1


class StoreError(EnvironmentFault):
    """The artifact store cannot be written or read."""


@contextmanager
def disk_faults(doing: str) -> Iterator[None]:
    """Turn a full or read-only disk into one clear `StoreError`; everything else passes through.

    Args:
        doing: what was being done, as in "publishing artifact train-1f0c".
    """
    try:
        yield
    except Exception as error:
        cause = {
            errno.ENOSPC: "no space left on the disk",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
        }.get(_number(error))
        if cause is None:
            raise
        raise StoreError(
            f"{cause} while {doing}",
            where=str(error.filename) if isinstance(error, OSError) and error.filename else None,
            fix="free some space or make it writable, then run the same command again; finished stages are kept",
        ) from error


def _number(error: Exception) -> int:
    """The system's number of an error, 0 where it has none. Libraries written in Rust, such as safetensors, have it in their text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0
