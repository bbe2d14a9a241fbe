"""What this machine has to give."""

from __future__ import annotations

import resource
from pathlib import Path

from workbench.models.load import device


def available_memory() -> int:
    """Bytes that a process may still take: of the GPU where there is one, else of the machine, or of the container it is in."""
    if device() == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:  # a container's limit, which psutil does not see (cgroup v2)
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(rows["inactive_file"])  # pages of files, which the kernel gives back when they are wanted
    except (OSError, ValueError, KeyError):
        return free
    return free if limit == "max" else min(free, int(limit) - used + cached)


def peak_memory() -> int:
    """Most bytes that this process has held so far: torch's allocations on the GPU where there is one, else resident memory.

    Linux: VmHWM. What `getrusage` says there is inherited: at least the memory of the process that started this one, at that moment.
    """
    if device() == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
