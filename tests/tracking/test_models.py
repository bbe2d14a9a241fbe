"""Models in MLflow: logged, registered, loaded back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.tracking import Journal, sync


def test_a_registered_model_loads_back(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import mlflow
    from mlflow import MlflowClient

    state = tmp_path / ".workbench"
    uri = f"sqlite:///{state}/mlflow.db"
    lineage = {
        "recipe_digest": "a" * 64,
        "data_digest": "b" * 64,
        "base_revision": "main",
        "parent_artifact": "train-1",
        "license": "apache-2.0",
    }

    def report(run_name: str) -> tuple[Journal, str]:
        journal = Journal.open(state / "runs" / run_name, "headlines")
        run = journal.start("merge", tags={"of": run_name})
        journal.params(run, {"rank": 16})
        journal.model(run, checkpoint, digest="c" * 64, registered_name="headlines", tags=lineage, max_new_tokens=3)
        journal.end(run)
        return journal, run

    capfd.readouterr()
    journal, _ = report("r1")
    result = sync(journal.directory, uri=uri)
    assert (result.left, result.refused, result.error) == (0, (), None)
    assert capfd.readouterr() == ("", ""), "MLflow's own chatter stays away"
    assert not list(journal.directory.glob("tracking.model.*"))

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("headlines").experiment_id
    (run,) = client.search_runs([experiment])
    (version,) = client.search_model_versions("name = 'headlines'")
    assert version.tags == lineage | {"workbench.artifact": "c" * 64}
    assert version.run_id == run.info.run_id
    assert version.status == "READY"
    (logged,) = client.search_logged_models([experiment])
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]

    # Replayed, and reported by another run: still one model and one version, linked with both runs.
    (journal.directory / "tracking.sync.json").unlink()
    assert sync(journal.directory, uri=uri).refused == ()
    second, _ = report("r2")
    assert sync(second.directory, uri=uri).refused == ()
    assert len(client.search_model_versions("name = 'headlines'")) == 1
    assert len(client.search_logged_models([experiment])) == 1
    runs = client.search_runs([experiment])
    assert [[output.model_id for output in run.outputs.model_outputs] for run in runs] == [[logged.model_id]] * 2

    # Killed during the upload: the model is there, but not ready; the next synchronisation completes it.
    half = client.create_logged_model(experiment, name="model", tags={"workbench.artifact": "d" * 64})
    left_over = journal.directory / "tracking.model.killed"
    left_over.mkdir()
    run_id = journal.start("merge")
    journal.model(run_id, checkpoint, digest="d" * 64, registered_name="headlines", tags=lineage)
    assert sync(journal.directory, uri=uri).refused == ()
    assert str(client.get_logged_model(half.model_id).status) == "READY"
    assert not left_over.exists()
    assert len(client.search_model_versions("name = 'headlines'")) == 2

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        info = mlflow.models.get_model_info("models:/headlines/1")
        assert [column.type.name for column in info.signature.inputs] == ["string"]
        assert [parameter.name for parameter in info.signature.params] == ["max_new_tokens"]
        assert info.metadata["base_revision"] == "main"
        pipeline: Any = mlflow.transformers.load_model("models:/headlines/1")
        (answer,) = pipeline("the model", max_new_tokens=2, do_sample=False)
        assert answer["generated_text"].startswith("the model")
        (predicted,) = mlflow.pyfunc.load_model("models:/headlines/2").predict(["the model"], params={"max_new_tokens": 2})
        assert predicted.startswith("the model")
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
