"""Bring MLflow up to date with journals: when, where to, and what happens when MLflow is away.

What the records become is in `mlflow_replay`; it is imported late, because importing MLflow takes seconds.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from workbench.tracking.journal import FILE, Record, read
from workbench.tracking.progress import Progress
from workbench.tracking.quiet import quiet
from workbench.tracking.target import database, public, tracking_uri

BATCH = 1000  # records taken from a journal before the progress is saved

_CONNECT_S = 3.0
_UPLOAD_S = 600
_AWAY_FIRST_S, _AWAY_MOST_S = 15.0, 300.0


@dataclass(frozen=True)
class SyncResult:
    """What a synchronisation achieved.

    Attributes:
        sent: records that MLflow now has.
        left: records that it does not have yet; a later `sync` sends them.
        error: why there are some left; None when there are none.
        first: this process has not met this error before: the moment to warn, once.
        refused: what MLflow will never take (such as a parameter that changed its value); it stays in the journal only.
    """

    sent: int = 0
    left: int = 0
    error: str | None = None
    first: bool = False
    refused: tuple[str, ...] = ()


@dataclass
class _Away:
    """A tracking server that did not answer, and when to ask it again (seconds of the monotonic clock)."""

    error: str
    wait_s: float
    until: float


_away: dict[str, _Away] = {}


def sync_all(state: Path, *, uri: str | None = None, timeout_s: float = 600.0) -> SyncResult:
    """`sync` every run and every check for drift in the state folder, oldest first, up to the first error.

    Asks even a server that was just found away.
    """
    deadline = time.monotonic() + timeout_s
    found = (path for name in ("runs", "drift") for path in (state / name).glob(f"[!.]*/{FILE}"))
    journals = sorted(found, key=lambda path: path.stat().st_mtime)
    results = []
    for index, path in enumerate(journals):
        results.append(sync(path.parent, uri=uri, timeout_s=max(1.0, deadline - time.monotonic()), force=True))
        if results[-1].error:
            uri = uri or tracking_uri(state)
            results += [SyncResult(left=_left(Progress.load(rest.parent, public(uri)))) for rest in journals[index + 1 :]]
            break
    return SyncResult(
        sent=sum(result.sent for result in results),
        left=sum(result.left for result in results),
        error=next((result.error for result in results if result.error), None),
        first=any(result.first for result in results),
        refused=tuple(text for result in results for text in result.refused),
    )


def sync(directory: Path, *, uri: str | None = None, timeout_s: float = 60.0, force: bool = False) -> SyncResult:
    """Send to MLflow what the journal in `directory` holds and MLflow does not have.

    Never raises because of MLflow, the network or the server. May be called often and from several processes; a server that was
    away is left alone for 15 s, then twice as long, at most 5 minutes. Honours MLFLOW_HTTP_REQUEST_TIMEOUT and
    MLFLOW_HTTP_REQUEST_MAX_RETRIES where they are set; else a request waits 10 s (uploads 10 minutes) and is not retried.

    Args:
        directory: `.workbench/runs/<run>`.
        uri: of the tracking server or database; default: `tracking_uri` of the state folder two levels up.
        timeout_s: stop beginning new requests after this long.
        force: ask a server even if it was away a moment ago.
    """
    uri = uri or tracking_uri(directory.absolute().parents[1])
    progress = Progress.load(directory, public(uri))
    if uri.startswith("sqlite:///") and not database(uri).exists():
        progress.forget()  # the database was deleted
    if not _left(progress):
        return SyncResult()
    away = _away.get(uri)
    if away and not force and time.monotonic() < away.until:
        return SyncResult(left=_left(progress), error=away.error)
    if problem := _no_connection(uri):
        return _gone(uri, progress, SyncResult(), problem)
    deadline = time.monotonic() + timeout_s
    with ExitStack() as held:
        locks = [directory / "tracking.lock"]
        if uri.startswith("sqlite:///"):  # runs of other recipes share the database, which takes one writer at a time
            database(uri).parent.mkdir(parents=True, exist_ok=True)
            locks.append(database(uri).with_suffix(".lock"))
        for lock in locks:
            if not held.enter_context(_exclusive(lock, deadline)):
                return SyncResult(left=_left(progress), error="another process is bringing MLflow up to date at this moment")
        progress = Progress.load(directory, public(uri))  # the other process may have moved it
        if uri.startswith("sqlite:///") and not database(uri).exists():
            progress.forget()
        return _replay(directory, uri, progress, deadline)


def _replay(directory: Path, uri: str, progress: Progress, deadline: float) -> SyncResult:
    sent = 0
    refused: tuple[str, ...] = ()
    upload_s = int(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", _UPLOAD_S))
    with quiet():
        try:
            from workbench.tracking.mlflow_replay import Replay, StoreReplacedError

            try:
                replay = Replay(directory, uri, progress, upload_s=upload_s)
            except StoreReplacedError:  # another database behind the same address: everything anew
                progress.forget()
                replay = Replay(directory, uri, progress, upload_s=upload_s)
            for batch in _batches(read(directory, progress.offset)):
                if time.monotonic() > deadline:
                    return SyncResult(sent, _left(progress), "the time for it was over", refused=tuple(replay.refused))
                replay.send(batch)
                refused = tuple(replay.refused)
                progress.offset = batch[-1].end
                progress.save()
                sent += len(batch)
        except Exception as error:  # noqa: BLE001 - whatever MLflow, its database or the network raise: the journal has it all
            return _gone(uri, progress, SyncResult(sent, refused=refused), f"{type(error).__name__}: {error}")
    _away.pop(uri, None)
    return SyncResult(sent, _left(progress), refused=refused)


def _gone(uri: str, progress: Progress, so_far: SyncResult, why: str) -> SyncResult:
    """MLflow cannot be reached: remember it for a while, and say so in one line without a password."""
    before = _away.get(uri)
    wait_s = min(before.wait_s * 2, _AWAY_MOST_S) if before else _AWAY_FIRST_S
    secret, _, _ = urlsplit(uri).netloc.rpartition("@")
    why = " ".join(why.split())
    if secret:
        why = why.replace(f"{secret}@", "")
    error = f"MLflow at {public(uri)} is not up to date ({why[:300]}); nothing is lost, `workbench sync` sends it later"
    _away[uri] = _Away(error, wait_s, time.monotonic() + wait_s)
    return SyncResult(so_far.sent, _left(progress), error, first=before is None, refused=so_far.refused)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Neighbours that MLflow takes in one request together, all others alone."""
    batch: list[Record] = []
    for record in records:
        small = record.body["kind"] in ("params", "metrics", "tags")
        if batch and (not small or len(batch) == BATCH):
            yield batch
            batch = []
        if small:
            batch.append(record)
        else:
            yield [record]
    if batch:
        yield batch


def _left(progress: Progress) -> int:
    return sum(1 for _ in read(progress.path.parent, progress.offset))


def _no_connection(uri: str) -> str | None:
    """Why no connection can be made to a tracking server, found out in seconds and before MLflow is imported."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or not address.hostname:
        return None
    if address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(address.hostname):
        return None  # only the proxy can tell
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


@contextmanager
def _exclusive(path: Path, deadline: float) -> Iterator[bool]:
    """Hold a lock file between processes and threads; False when another one held it until `deadline`."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.05)
            else:
                yield True
                return
