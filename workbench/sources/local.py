"""A source that lies on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from workbench.digest import path_digest
from workbench.errors import SourceError


def check(path: Path) -> str:
    """Make sure that a file, or a folder with all that is in it, can be read.

    Returns:
        The digest of its content.

    Raises:
        SourceError: it is missing, empty, not readable, or neither a file nor a folder.
    """
    try:
        exists = path.exists()
    except OSError as error:  # a name too long for the file system, a folder on the way that may not be entered
        raise SourceError(f"cannot be looked up: {error.strerror}", where=str(path), fix="check the path") from error
    if not exists:
        raise SourceError("no such file or folder", where=str(path), fix=_missing_fix(path))
    if not path.is_file() and not path.is_dir():
        raise SourceError("is neither a file nor a folder", where=str(path), fix="name a regular file or a folder")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not any(file.stat().st_size for file in files):
        raise SourceError("is empty", where=str(path), fix="name the file or folder that holds the data")
    for file in files:
        if not os.access(file, os.R_OK):
            raise SourceError("may not be read", where=str(file), fix="change its permissions")
    return path_digest(path)


def _missing_fix(path: Path) -> str:
    if path.is_symlink():
        return "it is a link to something that is gone; make the link anew"
    tail = "/".join(path.parts[-2:])
    if not path.parent.exists() and re.fullmatch(r"[\w.-]+/[\w-][\w.-]*", tail):
        return f"check the path (relative paths start at the recipe's folder); a repository of a model hub is written hf://{tail}@REVISION"
    return "check the path; relative paths start at the recipe's folder"
