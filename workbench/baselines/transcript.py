"""The append-only record of every request and its answer: `transcript.jsonl`.

Lines of JSON; `kind` tells them apart:

| kind | written | fields |
|---|---|---|
| asked | before a request is sent | call, key, most_usd, time |
| unbilled | it failed, and cost nothing | call, reason |
| lost | it failed, and may have been charged for | call, reason |
| answer | it was answered, or finally rejected | call, key, prompt_digest, and all that is in `Answer` and `Request` |

Each line is on the disk (fsync) before what it announces happens. A request that was asked and has no later line was in flight when
the process was killed; its worst case counts as lost, and it is asked again.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from workbench.errors import EnvironmentFault, EvaluationError, disk_faults

NAME = "transcript.jsonl"


class Transcript:
    """An open transcript, locked against other processes.

    Args:
        folder: created if missing.
        hide: takes the key out of a text before it is written.

    Attributes:
        answers: the answer's line, by key; of several the first.
        asked: (key, worst-case cost) of every request that was sent, by call.
        ended: calls that did not stay open: answered or not billed.

    Raises:
        EnvironmentFault: another process records here.
        EvaluationError: the file is damaged in the middle; a torn last line is cut off.
    """

    def __init__(self, folder: Path, hide: Callable[[str], str]) -> None:
        self.path = folder / NAME
        self._hide = hide
        self._pending: list[bytes] = []
        self._begun = self._written = 0
        self._fault: BaseException | None = None
        self._writing = asyncio.Lock()
        self.answers: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, tuple[str, float]] = {}
        self.ended: set[str] = set()

    def __enter__(self) -> Transcript:
        with disk_faults(f"opening {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            self._read()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def lost(self, keys: set[str]) -> float:
        """US dollars that earlier requests with these keys may have cost without leaving an answer."""
        return sum(most for call, (key, most) in self.asked.items() if key in keys and call not in self.ended)

    async def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; returns once it is on the disk. Lines that wait together are synced together."""
        line = {key: _hidden(value, self._hide) for key, value in line.items()}
        self._pending.append(json.dumps(line).encode() + b"\n")
        self._begun += 1
        mine = self._begun
        async with self._writing:
            if self._fault is not None:
                raise self._fault  # a line may be torn, and nothing must follow it
            if self._written < mine:
                batch, self._pending = self._pending, []
                try:
                    await asyncio.to_thread(self._write, b"".join(batch))
                except BaseException as error:
                    self._fault = error
                    raise
                self._written += len(batch)
        self._note(line)

    def _write(self, data: bytes) -> None:
        with disk_faults(f"recording to {self.path}"):
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fix = "wait for it to end, or give one of them another working directory"
            raise EnvironmentFault("another process is recording to this transcript", where=str(self.path), fix=fix) from error

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # torn by a kill -9; what it announced had not begun
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                self._note(json.loads(line))
            except (ValueError, LookupError, TypeError) as error:
                fix = "restore the file from a copy, or move it away and record again"
                raise EvaluationError("the transcript is damaged", where=f"{self.path}:{number}", fix=fix) from error

    def _note(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "asked":
            self.asked[line["call"]] = (line["key"], line["most_usd"])
        elif line["kind"] == "unbilled":
            self.ended.add(line["call"])
        elif line["kind"] == "answer":
            self.ended.add(line["call"])
            self.answers.setdefault(line["key"], dict(line))


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list | tuple):
        return [_hidden(item, hide) for item in value]
    return {key: _hidden(item, hide) for key, item in value.items()} if isinstance(value, dict) else value
