"""Where a run ran: what has to be known to run it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def environment(directory: Path | None = None) -> dict[str, Any]:
    """Python, machine, threads, git commit and every installed package; JSON-compatible, no secrets, no torch import.

    Takes about 0.2 s. What torch knows (its threads, the accelerators) is there only where torch is already loaded.

    Args:
        directory: whose git commit is meant; default: the working directory.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "git": _git(directory or Path.cwd()),
        "packages": dict(sorted((dist.metadata["Name"], dist.version) for dist in metadata.distributions() if dist.metadata["Name"])),
    }
    if torch := sys.modules.get("torch"):
        found["torch_threads"] = torch.get_num_threads()
        found["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _cpu_name() -> str:
    """The processor as its maker calls it; `platform.processor()` is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(directory: Path) -> dict[str, Any] | None:
    """The commit, and whether tracked files differ from it; None outside a repository or without git."""

    def ask(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
