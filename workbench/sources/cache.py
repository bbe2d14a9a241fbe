"""The cache's two rules: one process writes an entry at a time, and an entry is either whole or not there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.disk import fsync


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the entry's lock; the kernel lets go of it when the process dies, however it dies."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f"{entry.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(finished: Path, entry: Path) -> None:
    """Rename a finished file or folder on the same file system to its place, so that a power cut finds all of it or nothing."""
    for path in [finished, *finished.rglob("*")]:
        fsync(path)
    entry.parent.mkdir(parents=True, exist_ok=True)
    finished.rename(entry)
    fsync(entry.parent)
