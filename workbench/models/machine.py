"""What this machine has to give."""

from __future__ import annotations

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
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)
