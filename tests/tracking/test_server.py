"""Journals and a real tracking server: there, slow, gone, back again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.tracking import Journal, sync
from workbench.tracking.mlflow_sync import _away


class Server:
    """`mlflow server` on a port of the loopback interface, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/server.db", "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=self._folder, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    _away.clear()


def client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.uri, server.uri)


def test_the_server_dies_in_the_middle_and_comes_back(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    directory = tmp_path / ".workbench" / "runs" / "r"
    journal = Journal.open(directory, "dies")
    parent = journal.start("recipe")
    journal.params(parent, {"long": "x" * 10_000, **{f"wide{i}": "ü" * 5180 for i in range(40)}})
    first = journal.start("train", parent=parent)
    journal.metrics(first, {"loss": 1.0, "nan": float("nan"), "inf": float("inf")}, step=1)
    assert sync(directory).left == 0

    for index in range(60):
        run = journal.start(f"c{index}", parent=parent)
        journal.metrics(run, {"score": index})
        journal.end(run)
    killer = threading.Timer(0.3, server.kill)
    killer.start()
    result = sync(directory)
    killer.join()
    assert 0 < result.sent < 180, "the server was to die in the middle"
    assert result.left == 180 - result.sent
    assert result.error is not None
    assert result.first

    for step in range(2, 200):  # the run goes on, and asks for a synchronisation at every step
        journal.metrics(first, {"loss": 1 / step}, step=step)
        result = sync(directory)
        assert result.error is not None
        assert not result.first, "one warning is enough"
    journal.end(first)
    journal.end(parent)
    started = time.monotonic()
    sync(directory, force=True)
    assert time.monotonic() - started < 5

    server.start()
    result = sync(directory, force=True)
    assert (result.left, result.error, result.refused) == (0, None, ())
    mlflow = client(server)
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("dies").experiment_id], max_results=1000)
    by_name = {run.info.run_name: run for run in runs}
    assert len(runs) == len(by_name) == 62
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(by_name[f"c{i}"].data.metrics == {"score": i} for i in range(60))
    assert all(by_name[f"c{i}"].data.tags["mlflow.parentRunId"] == by_name["recipe"].info.run_id for i in range(60))
    history = mlflow.get_metric_history(by_name["train"].info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(range(1, 200))
    assert by_name["recipe"].data.params["long"].endswith("…")
    assert by_name["recipe"].data.params["wide39"] == "ü" * 5180
    assert Path(mlflow.download_artifacts(by_name["recipe"].info.run_id, "long_values/param.long.txt")).read_text() == "x" * 10_000


def test_the_same_journal_into_another_mlflow(server: Server, tmp_path: Path) -> None:
    directory = tmp_path / ".workbench" / "runs" / "r"
    journal = Journal.open(directory, "both")
    journal.metrics(journal.start("r"), {"x": 1})
    local = f"sqlite:///{tmp_path}/local.db"
    assert sync(directory, uri=local).sent == 3
    assert sync(directory, uri=server.uri).sent == 3
    assert sync(directory, uri=local).sent == 0
    assert client(server).get_experiment_by_name("both") is not None


def test_a_model_through_the_server(server: Server, checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / ".workbench" / "runs" / "r"
    journal = Journal.open(directory, "served")
    run = journal.start("merge")
    journal.model(run, checkpoint, digest="c" * 64, registered_name="served", tags={"base_revision": "main"})
    for _ in range(2):
        result = sync(directory, uri=server.uri)
        assert (result.left, result.refused, result.error) == (0, (), None)
        (directory / "tracking.sync.json").unlink()
    mlflow = client(server)
    (version,) = mlflow.search_model_versions("name = 'served'")
    assert version.tags == {"base_revision": "main", "workbench.artifact": "c" * 64}
    (logged,) = mlflow.search_logged_models([mlflow.get_experiment_by_name("served").experiment_id])
    assert version.source == logged.artifact_location
    assert str(logged.status) == "READY"
    assert "model/model.safetensors" in {item.path for item in mlflow.list_logged_model_artifacts(logged.model_id, "model")}


def test_no_server_costs_seconds_once(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "r"
    journal = Journal.open(directory, "exp")
    journal.start("r")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://me:secret-password@127.0.0.1:{port}"
    started = time.monotonic()
    results = [sync(directory, uri=uri) for _ in range(100)]
    assert time.monotonic() - started < 4
    assert [result.first for result in results] == [True] + [False] * 99
    assert {result.left for result in results} == {2}
    assert "secret-password" not in (results[0].error or "")
    assert not any("secret-password" in path.read_text() for path in directory.iterdir())


def test_a_server_that_accepts_and_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    directory = tmp_path / "runs" / "r"
    Journal.open(directory, "exp").start("r")
    import mlflow  # noqa: F401 - not part of what is timed

    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        assert sync(directory, uri=uri).error is not None
        assert 1.5 < time.monotonic() - started < 8, "the user's time limit, and no retries"
        started = time.monotonic()
        assert sync(directory, uri=uri).left == 2
        assert time.monotonic() - started < 0.5
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "2"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_something_else_answers_at_that_address(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "r"
    Journal.open(directory, "exp").start("r")
    (tmp_path / "www").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path / "www")],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        result = sync(directory, uri=f"http://127.0.0.1:{port}")
    finally:
        other.kill()
        other.wait()
    assert result.left == 2
    assert result.error is not None


def test_the_journal_alone_is_enough(server: Server, tmp_path: Path) -> None:
    """What lies beside the journal may be lost, and the folder copied elsewhere: still the same runs."""
    directory = tmp_path / "runs" / "r"
    journal = Journal.open(directory, "copied")
    run = journal.start("r")
    (directory / "note.txt").write_text("note")
    journal.file(run, directory / "note.txt", "notes")
    assert sync(directory, uri=server.uri).left == 0
    copy = tmp_path / "elsewhere" / "r"
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("tracking.sync.json"))
    shutil.rmtree(directory)
    result = sync(copy, uri=server.uri)
    assert (result.sent, result.error, result.refused) == (3, None, ())
    mlflow = client(server)
    (found,) = mlflow.search_runs([mlflow.get_experiment_by_name("copied").experiment_id])
    assert [item.path for item in mlflow.list_artifacts(found.info.run_id, "notes")] == ["notes/note.txt"]
