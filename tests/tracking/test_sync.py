"""Journals into the default store: SQLite in the state folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.tracking import Journal, sync, sync_all, tracking_uri, ui_command
from workbench.tracking.mlflow_sync import SyncResult

SYNC = "import sys; from pathlib import Path; from workbench.tracking import sync; print(sync(Path(sys.argv[1]), timeout_s=120))"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for the module: making its database takes seconds. Every test uses an experiment of its own."""
    return tmp_path_factory.mktemp("work") / ".workbench"


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client(state: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(state), tracking_uri(state))


def runs(state: Path, experiment: str) -> dict[str, Any]:
    """The runs of an experiment by name; fails if a name is there twice."""
    mlflow = client(state)
    found = mlflow.search_runs([mlflow.get_experiment_by_name(experiment).experiment_id])
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), names
    return dict(zip(names, found, strict=True))


def text(state: Path, run: Any, path: str) -> str:
    return Path(client(state).download_artifacts(run.info.run_id, path)).read_text()


def clean(result: SyncResult) -> bool:
    return result.left == 0 and result.error is None and not result.refused


def test_a_whole_run(state: Path, tmp_path: Path) -> None:
    directory = state / "runs" / "whole"
    journal = Journal.open(directory, "whole")
    recipe = journal.start("headlines", tags={"recipe": "abc"})
    train = journal.start("train", parent=recipe)
    base = journal.start("base", parent=recipe)
    journal.params(recipe, {"long": "x" * 10_000, "gross": "ß" * 6001, "none": None, **{f"p{i}": i for i in range(250)}})
    journal.params(recipe, {f"wide{i}": "ü" * 5900 for i in range(40)})  # 1.4 MB once escaped, above MLflow's limit of a request
    journal.tags(recipe, {"note": "y" * 20_000, "again": "old"})
    journal.tags(recipe, {"again": "new", "strange/../key ü@": "v"})
    journal.metrics(train, {"recall@5": 0.5, "f1 (macro)": 0.25, "nan": math.nan, "inf": math.inf, "/a//b/": 1, "z" * 300: 2}, step=1)
    for step in range(2500):
        journal.metrics(train, {"loss": 1 / (step + 1)}, step=step)
    journal.metrics(base, {"score": 0.5}, at=1_700_000_000.25)
    journal.text(recipe, "name: headlines\n", "recipe.resolved.yaml")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "single.txt").write_text("one")
    journal.file(train, tmp_path / "adapter", "adapter")
    journal.file(train, tmp_path / "single.txt")
    journal.dataset(train, "headlines", digest="d" * 64, source="pypi://evals==1/x.jsonl#sha256=ab", rows=70, context="train")
    journal.dataset(train, "local", digest="e" * 64, source=str(tmp_path / "single.txt"), rows=1, context="validation")
    journal.dataset(train, "web", digest="f" * 64, source="https://host.example/x.csv", rows=2, context="test")
    for run in (base, train, recipe):
        journal.end(run)

    result = sync(directory)
    assert clean(result), result
    assert sync(directory) == SyncResult()

    found = runs(state, "whole")
    assert set(found) == {"headlines", "train", "base"}
    parent = found["headlines"]
    assert {found[name].data.tags["mlflow.parentRunId"] for name in ("train", "base")} == {parent.info.run_id}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert parent.data.tags["workbench.id"] == recipe
    assert parent.info.end_time >= parent.info.start_time

    assert parent.data.params["p249"] == "249"
    assert parent.data.params["wide39"] == "ü" * 5900
    assert parent.data.params["long"] == "x" * 5999 + "…"
    assert text(state, parent, "long_values/param.long.txt") == "x" * 10_000
    assert parent.data.params["gross"].endswith("…")
    assert parent.data.tags["note"].endswith("…")
    assert text(state, parent, "long_values/tag.note.txt") == "y" * 20_000
    assert parent.data.tags["again"] == "new"
    assert "v" in parent.data.tags.values()
    assert text(state, parent, "recipe.resolved.yaml") == "name: headlines\n"

    metrics = found["train"].data.metrics
    assert metrics["recall_5"] == 0.5
    assert metrics["f1 _macro_"] == 0.25
    assert metrics["a/b"] == 1
    assert math.isnan(metrics["nan"])
    assert metrics["inf"] > 1e300
    assert 2 in metrics.values()
    history = client(state).get_metric_history(found["train"].info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(step, 1 / (step + 1)) for step in range(2500)]
    (score,) = client(state).get_metric_history(found["base"].info.run_id, "score")
    assert score.timestamp == 1_700_000_000_250
    assert text(state, found["train"], "adapter/adapter_config.json") == "{}"
    assert text(state, found["train"], "single.txt") == "one"

    import mlflow.data

    inputs = {item.dataset.name: item for item in found["train"].inputs.dataset_inputs}
    tags = {tag.key: tag.value for tag in inputs["headlines"].tags}
    assert tags == {"mlflow.data.context": "train", "workbench.digest": "d" * 64, "workbench.rows": "70"}
    assert json.loads(inputs["headlines"].dataset.profile) == {"num_rows": 70}
    assert mlflow.data.get_source(inputs["headlines"]).to_dict() == {"tags": {"workbench.source": "pypi://evals==1/x.jsonl#sha256=ab"}}
    assert Path(mlflow.data.get_source(inputs["local"]).load()).read_text() == "one"
    assert mlflow.data.get_source(inputs["web"]).url == "https://host.example/x.csv"

    (directory / "tracking.sync.json").unlink()  # replayed from the first line: nothing is there twice
    assert clean(sync(directory))
    again = runs(state, "whole")
    assert {name: run.info.run_id for name, run in again.items()} == {name: run.info.run_id for name, run in found.items()}
    assert len(client(state).get_metric_history(found["train"].info.run_id, "loss")) == 2500
    assert len(client(state).get_metric_history(found["train"].info.run_id, "nan")) == 1
    assert len(again["train"].inputs.dataset_inputs) == 3


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(state: Path) -> None:
    directory = state / "runs" / "resumed"
    journal = Journal.open(directory, "resumed")
    run = journal.start("r")
    journal.params(run, {"threads": 2})
    journal.metrics(run, {"loss": 3.0}, step=1)
    journal.end(run, "FAILED")
    assert clean(sync(directory))
    assert runs(state, "resumed")["r"].info.status == "FAILED"

    journal = Journal.open(directory, "resumed")
    assert journal.start("r") == run
    journal.params(run, {"threads": 4, "new": 1})
    journal.metrics(run, {"loss": 2.0}, step=2)
    result = sync(directory)
    assert (result.left, result.error) == (0, None)
    assert len(result.refused) == 1, "MLflow cannot change a parameter; the rest of the batch still arrives"
    assert "threads" in result.refused[0]
    found = runs(state, "resumed")["r"]
    assert found.info.status == "RUNNING"
    assert found.data.params == {"threads": "2", "new": "1"}
    assert {m.step for m in client(state).get_metric_history(found.info.run_id, "loss")} == {1, 2}
    journal.end(run)
    assert clean(sync(directory))
    assert runs(state, "resumed")["r"].info.status == "FINISHED"


def test_what_mlflow_never_takes_does_not_block_the_rest(state: Path, tmp_path: Path) -> None:
    directory = state / "runs" / "refused"
    journal = Journal.open(directory, "refused")
    run = journal.start("r")
    journal.file(run, tmp_path / "gone.txt")
    journal.text(run, "text", "../escape.txt")
    journal.model(run, tmp_path, digest="no model in here")
    journal.metrics(run, {"after": 1})
    result = sync(directory)
    assert (result.left, result.error) == (0, None)
    assert len(result.refused) == 3, result
    assert "no longer there" in result.refused[0]
    assert runs(state, "refused")["r"].data.metrics == {"after": 1}


def test_a_run_deleted_in_mlflow_stays_deleted(state: Path) -> None:
    directory = state / "runs" / "deleted"
    journal = Journal.open(directory, "deleted")
    parent = journal.start("r")
    child = journal.start("c", parent=parent)
    assert clean(sync(directory))
    client(state).delete_run(runs(state, "deleted")["c"].info.run_id)
    journal.metrics(child, {"x": 1})
    journal.start("c", parent=parent)
    journal.metrics(parent, {"x": 1})
    assert clean(sync(directory))
    (directory / "tracking.sync.json").unlink()
    assert clean(sync(directory))
    assert {name: run.data.metrics for name, run in runs(state, "deleted").items()} == {"r": {"x": 1}}


def test_two_processes_at_a_time_and_one_killed_in_the_middle(state: Path) -> None:
    directory = state / "runs" / "crowd"
    journal = Journal.open(directory, "crowd")
    parent = journal.start("parent")
    children = [journal.start(f"c{i}", parent=parent) for i in range(8)]
    for child in children:
        journal.metrics(child, {f"m{i}": i for i in range(40)}, step=1)
        journal.text(child, "t", "t.txt")
        journal.end(child)

    killed = subprocess.Popen([sys.executable, "-c", SYNC, directory], stdout=subprocess.PIPE, text=True)
    progress = directory / "tracking.sync.json"
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it was to be killed in the middle"

    other = subprocess.Popen([sys.executable, "-c", SYNC, directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    reached = progress.read_text()
    while other.poll() is None and progress.read_text() == reached:
        time.sleep(0.001)
    while other.poll() is None:  # it is in the middle: now this process wants to do the same
        result = sync(directory, timeout_s=0.2)
        assert not result.refused
    out, err = other.communicate()
    assert other.returncode == 0, err
    assert "left=0, error=None" in out
    assert err == ""
    assert len(out.splitlines()) == 1, "MLflow's own chatter stays away"
    found = runs(state, "crowd")
    assert len(found) == 9
    for name, run in found.items():
        if name != "parent":
            assert len(client(state).get_metric_history(run.info.run_id, "m7")) == 1
            assert run.info.status == "FINISHED"


def test_the_database_was_deleted(tmp_path: Path) -> None:
    state = tmp_path / ".workbench"
    directory = state / "runs" / "r"
    journal = Journal.open(directory, "exp")
    journal.metrics(journal.start("r"), {"x": 1})
    assert clean(sync_all(state))
    for path in state.glob("mlflow.db*"):
        path.unlink()
    moved = tmp_path / "moved"  # and the folder has moved
    shutil.move(state, moved)
    assert clean(sync_all(moved))
    assert runs(moved, "exp")["r"].data.metrics == {"x": 1}
    assert any((moved / "mlartifacts").parent.glob("mlflow.db"))


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    state = tmp_path / ".workbench"
    journal = Journal.open(state / "runs" / "r", "exp")
    journal.start("r")
    (state / "mlflow.db").write_bytes(b"this is no database" * 100)
    result = sync(state / "runs" / "r")
    assert result.left == 2
    assert result.error is not None
    assert "\n" not in result.error
    assert result.first
    second = sync(state / "runs" / "r")
    assert (second.error, second.first) == (result.error, False)


def test_sync_puts_everything_back_that_it_changes(state: Path) -> None:
    import logging

    import mlflow

    directory = state / "runs" / "tidy"
    journal = Journal.open(directory, "tidy")
    journal.end(journal.start("r"))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    before = (dict(os.environ), mlflow.get_tracking_uri(), mlflow.active_run(), logging.getLogger("mlflow").level)
    assert clean(sync(directory))
    assert (dict(os.environ), mlflow.get_tracking_uri(), mlflow.active_run(), logging.getLogger("mlflow").level) == before


def test_where_it_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    command = ui_command(tmp_path)
    assert command[1:6] == ["-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert command[-1] == (tmp_path / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:password@host.example/mlflow")
    assert tracking_uri(tmp_path) == "https://me:password@host.example/mlflow"
    assert ui_command(tmp_path)[-2:] == ["webbrowser", "https://host.example/mlflow"]
