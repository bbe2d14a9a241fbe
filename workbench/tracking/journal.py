"""The journal: all that a run reports, in one append-only JSONL file that survives whatever happens to MLflow or the run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.digest import digest
from workbench.errors import disk_faults

FILE = "tracking.jsonl"
Status = Literal["FINISHED", "FAILED", "KILLED"]

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8  # a shorter value would also match ordinary words


@dataclass(frozen=True)
class Record:
    """One line of a journal.

    Attributes:
        body: the line's JSON object; `kind` says what it reports, `run` of which run, `time` in milliseconds since 1970.
        end: the offset in bytes just behind the line.
    """

    body: dict[str, Any]
    end: int


class Journal:
    """Writes one journal. Several processes and threads may write to the same one at a time.

    Every method raises `StoreError` when the disk is full or not writable. Values of environment variables whose name says
    that they are secret are replaced by that name.
    """

    def __init__(self, directory: Path, identity: str, experiment: str) -> None:
        """Use `Journal.open`."""
        self.directory, self.experiment = directory, experiment
        self._identity = identity

    @classmethod
    def open(cls, directory: Path, experiment: str) -> Journal:
        """Begin the journal of a run, or go on with the one that is there.

        Args:
            directory: the run's own folder, made if need be.
            experiment: name of the MLflow experiment. A journal that is there keeps its own, since MLflow cannot move runs.
        """
        with disk_faults(f"opening the tracking journal in {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory / FILE) as file:
                heads = (record.body for record in read(directory) if record.body["kind"] == "journal")
                head = next(heads, None)
                if head is None:  # a new file, or one whose writer was killed within its first line
                    head = {"kind": "journal", "id": uuid.uuid4().hex, "experiment": experiment, "time": _now()}
                    _append(file, head, durable=True)
        return cls(directory, head["id"], head["experiment"])

    def start(self, name: str, *, parent: str | None = None, tags: Mapping[str, object] | None = None) -> str:
        """Begin a run, or go on with the one of the same name and parent, and return its id.

        Args:
            name: what the run is called in MLflow.
            parent: id of the run in which this one is nested.
            tags: as in `tags`.
        """
        run = digest([self._identity, parent, name])[:32]
        self._write("start", run, durable=True, name=name, parent=parent, tags=_texts(tags or {}))
        return run

    def params(self, run: str, values: Mapping[str, object]) -> None:
        """Report what the run was asked to do. MLflow keeps the first value of a name; of any length."""
        self._write("params", run, values=_texts(values))

    def tags(self, run: str, values: Mapping[str, object]) -> None:
        """Report what is worth searching for; a later value of a name replaces an earlier one."""
        self._write("tags", run, values=_texts(values))

    def metrics(self, run: str, values: Mapping[str, float | None], *, step: int = 0, at: float | None = None) -> None:
        """Report numbers, NaN and infinity included; None means that there is no number, and nothing is reported.

        Args:
            run: its id.
            values: by name; names that MLflow refuses are mapped to their nearest.
            step: position on the x axis.
            at: seconds since 1970; default: now.
        """
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        # JSON knows no NaN and no infinity: those travel as the text that float() reads.
        finite = {name: value if abs(value) < float("inf") else str(value) for name, value in numbers.items()}
        self._write("metrics", run, values=finite, step=step, time=_now() if at is None else round(at * 1000))

    def text(self, run: str, text: str, artifact_path: str) -> None:
        """Keep a text as the artifact `artifact_path`, such as `recipe.resolved.yaml`."""
        self._write("text", run, text=text, artifact_path=artifact_path)

    def file(self, run: str, path: Path, artifact_path: str | None = None) -> None:
        """Keep a file, or all that is in a folder, as artifacts.

        Args:
            run: its id.
            path: has to be there until it is synchronised.
            artifact_path: folder among the run's artifacts; default: their root.
        """
        self._write("file", run, path=self._relative(path), artifact_path=artifact_path)

    def dataset(self, run: str, name: str, *, digest: str, source: str, rows: int, context: str) -> None:
        """Report a data set that the run used.

        Args:
            run: its id.
            name: what it is called in MLflow.
            digest: of its content, in full.
            source: a path, a URL or a source reference such as `pypi://...`.
            rows: how many of it were used.
            context: what for: train, validation, calibration, test, or the name of a guard set.
        """
        self._write("dataset", run, name=name, digest=digest, source=source, rows=rows, context=context)

    def model(
        self,
        run: str,
        directory: Path,
        *,
        digest: str,
        registered_name: str | None = None,
        tags: Mapping[str, object] | None = None,
        max_new_tokens: int = 20,
    ) -> None:
        """Report a model that the run made, and perhaps register it as the next version of `registered_name`.

        A version of one digest is registered once, whichever run reports it. An adapter is not a model: use `file`.

        Args:
            run: its id.
            directory: a transformers checkpoint with its tokenizer; has to be there until it is synchronised.
            digest: of its content.
            registered_name: name in MLflow's model registry.
            tags: lineage: digests of recipe and data, revision of the base, parent artifact, licence.
            max_new_tokens: default of the parameter of that name in the model's signature.
        """
        self._write(
            "model", run, path=self._relative(directory), digest=digest, registered_name=registered_name,
            tags=_texts(tags or {}), max_new_tokens=max_new_tokens,
        )  # fmt: skip

    def alias(self, run: str, registered_name: str, alias: str, *, digest: str) -> None:
        """Point an alias of the model registry to the version with this digest, which an earlier `model` registered.

        Only once: a later report of the same does not take the alias back from what it was moved to meanwhile.
        """
        fields = {"registered_name": registered_name, "alias": alias, "digest": digest}
        if not any(record.body["kind"] == "alias" and fields.items() <= record.body.items() for record in read(self.directory)):
            self._write("alias", run, registered_name=registered_name, alias=alias, digest=digest)

    def end(self, run: str, status: Status = "FINISHED") -> None:
        """The run is over; a later `start` of it takes it up again."""
        self._write("end", run, durable=True, status=status)

    def _relative(self, path: Path) -> str:
        """Relative to the journal, so that the whole state folder can be moved before it is synchronised."""
        return os.path.relpath(path, self.directory)

    def _write(self, kind: str, run: str, *, durable: bool = False, **fields: Any) -> None:
        with disk_faults("writing the tracking journal"), _locked(self.directory / FILE) as file:
            _append(file, {"kind": kind, "run": run, "time": _now(), **fields}, durable=durable)


def read(directory: Path, offset: int = 0) -> Iterator[Record]:
    """The records of a journal from byte `offset` on; lines that a killed writer left unfinished are passed over."""
    try:
        file = (directory / FILE).open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # torn, or being written at this moment
            offset += len(line)
            try:
                body = json.loads(line)
            except ValueError:
                continue
            if isinstance(body, dict) and "kind" in body:
                yield Record(body, offset)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file for appending and hold its lock: one writer at a time, threads of one process included."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)  # releases the lock


def _append(file: int, record: Mapping[str, Any], *, durable: bool) -> None:
    """Write one whole line, or nothing; `durable` waits until the disk has it."""
    data = (_without_secrets(json.dumps(record, separators=(",", ":"))) + "\n").encode()
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        data = b"\n" + data  # the writer before was killed within its line: leave it alone, begin a new one
    try:
        written = os.write(file, data)
        while written < len(data):  # a nearly full disk takes a part, then says why
            written += os.write(file, data[written:])
    except OSError:
        os.ftruncate(file, size)
        raise
    if durable:
        os.fsync(file)


def _without_secrets(line: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            line = line.replace(json.dumps(value)[1:-1], f"${name}")
    return line
