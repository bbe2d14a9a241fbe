"""A child process that does heavy work: started, followed through the lines it logs, and dead as soon as its parent is.

It leaves a line of JSON for every event, and at its end a result or the error that its user can cure, each in a file.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import EnvironmentFault, WorkbenchError

#: Seconds between two looks at what a child has logged.
POLL_INTERVAL = 0.5

#: Called with every line of a child's `events.jsonl`.
OnEvent = Callable[[dict[str, Any]], None]


def follow(command: Sequence[str], *, log: Path, events: Path, on_event: OnEvent, environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end and hand over what it logs.

    Args:
        log: its output is added to this file.
        events: lines of JSON that it writes; those of earlier attempts are handed over as well.
        environment: added to this process's own.

    Returns:
        Its exit code.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
        )
        try:
            position = 0
            while True:
                running = process.poll() is None
                position = read_events(events, position, on_event)
                if not running:
                    return process.returncode
                time.sleep(POLL_INTERVAL)
        except BaseException:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def outcome(folder: Path, code: int, *, what: str, log: Path, kind: type[WorkbenchError], fix: str) -> dict[str, Any]:
    """What a child left in `result.json`.

    Args:
        folder: where it leaves `result.json` or `error.json`.
        code: its exit code.
        what: what it did, as in "training".
        kind: the error to raise for what it says in `error.json`.
        fix: what to do when it died without saying why.

    Raises:
        WorkbenchError: of `kind`, as the child said.
        EnvironmentFault: it died without saying; the end of its log is quoted.
    """
    if (folder / "error.json").exists():
        fields = json.loads((folder / "error.json").read_text())
        raise kind(fields["what"], where=fields["where"], fix=fields["fix"])
    if not (folder / "result.json").exists():
        tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-15:])
        raise EnvironmentFault(f"{what} ended without a result (exit code {code}); its last words:\n    {tail}", where=str(log), fix=fix)
    return dict(json.loads((folder / "result.json").read_text()))


def forget_outcome(folder: Path) -> None:
    """Remove what an earlier attempt said at its end."""
    for name in ("result.json", "error.json"):
        (folder / name).unlink(missing_ok=True)


def leave_error(folder: Path, error: WorkbenchError) -> None:
    """Write `error.json`, from which `outcome` raises."""
    write_json(folder / "error.json", {"what": error.what, "where": error.where, "fix": error.fix})


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under a temporary name, then rename it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.rename(path)


def read_events(path: Path, position: int, on_event: OnEvent) -> int:
    """Hand over the whole lines after byte `position`; returns where to go on."""
    if not path.exists():
        return position
    with path.open("rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            try:
                on_event(json.loads(line))
            except ValueError:
                continue  # torn by a kill -9 in an earlier attempt
    return position


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that a kill -9 leaves no work behind (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def leave_with_parent() -> None:
    """End this process when its parent is gone, on every system."""
    die_with_parent()
    threading.Thread(target=_wait_for_another_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_another_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
