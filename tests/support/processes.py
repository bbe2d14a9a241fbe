"""Looking after processes: waiting for what they do, and seeing which of them are still there (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def wait(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Until the condition holds.

    Args:
        what: is waited for; named if it does not come within so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def naming(*texts: object) -> dict[int, str]:
    """Command lines that hold every one of these texts, by process id; this process, and the dead that nobody has asked for, excepted."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue  # gone in the meantime
        if int(path.parent.name) != os.getpid() and all(str(text) in line for text in texts):
            found[int(path.parent.name)] = line
    return found
