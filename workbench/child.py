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
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.errors import EnvironmentFault, WorkbenchError

#: Seconds between two looks at what a child has logged; its end is seen at once.
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
    return attend(_start(command, log, environment, subprocess.DEVNULL), events=events, on_event=on_event)


def attend(process: subprocess.Popen[bytes], *, events: Path, on_event: OnEvent) -> int:
    """Hand over what a child logs until it ends; if that is interrupted, end it.

    Args:
        events: lines of JSON that it writes; those of earlier attempts are handed over as well.

    Returns:
        Its exit code.
    """
    try:
        position = 0
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_INTERVAL)
            position = read_events(events, position, on_event)
            if process.returncode is not None:
                return process.returncode
    except BaseException:
        _end(process)
        raise


class Standby:
    """A child that can be started before its work is there: it imports what takes long, then waits for a line on its standard input.

    End of file there instead of a line must end it: nobody wants it any more.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start it, unless it is there already. One that has died is started again, and may say why to somebody who listens.

        Args:
            log, environment: as for `follow`.
        """
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._process = _start(command, log, environment, subprocess.PIPE)

    def go(self) -> subprocess.Popen[bytes]:
        """Tell the child, which was started, that its work is there; returns its process, for `attend`."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # broken: it is dead, which whoever attends to it will see
            pipe.write(b"\n")
        return self._process

    def end(self) -> None:
        """See to it that there is no such child, at work or not."""
        if self._process is not None:
            _end(self._process)
            self._process = None


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


def _start(command: Sequence[str], log: Path, environment: Mapping[str, str] | None, stdin: int) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=stdin,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


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
