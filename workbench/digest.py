"""Digests: what makes two values, two files or two folders the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON-compatible value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_files(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, by its relative POSIX path, in sorted order."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in files}


def path_digest(path: Path) -> str:
    """The digest of a file, or of a folder's files with their relative names."""
    return file_digest(path) if path.is_file() else digest(tree_files(path))
