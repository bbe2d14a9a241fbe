"""The alias `champion` in a real local MLflow: moved by a PASS against a real baseline, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.judged import closed, judged, sets
from tests.support.tiny import make_model
from tests.support.workplace import Said, Workplace

#: A baseline that is always wrong, which anything beats; and one that is always right.
WEAK, STRONG = "closed-001", "closed-002"


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = judged(tmp_path / "desk", tiny_model)
    make_model(place.folder / "model2", seed=1)
    return place


def against(place: Workplace, url: str, model: str, *overrides: str, code: int) -> Said:
    asked = f"baseline={{provider: openai, model: {model}, url: '{url}', price: {{input: 1, output: 1}}}}"
    said = place("run", "desk.yaml", "--json", *sets(asked, *overrides))
    assert said.code == code, said.err
    return said


def champion(place: Workplace) -> str | None:
    """The artifact that the alias names, as its version's tag has it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from workbench.tracking import tracking_uri

    uri = tracking_uri(place.state)
    try:
        version: Any = MlflowClient(uri, uri).get_model_version_by_alias("desk", "champion")
    except MlflowException:
        return None
    return str(version.tags["workbench.artifact"])


def key(said: Said) -> str:
    """The key of the model that was judged."""
    return next(str(stage["artifact"]).rpartition("-")[2] for stage in said.json["stages"] if stage["name"] == "model")


def test_only_a_pass_that_is_not_simulated_moves_it(desk: Workplace) -> None:
    simulated = desk("run", "desk.yaml", "--json", *sets("baseline.simulator.accuracy=0.0"))
    assert (simulated.code, simulated.json["gate"]["verdict"], simulated.json["gate"]["simulated"]) == (0, "PASS", True)
    assert champion(desk) is None
    with closed(right=False) as weak, closed(right=True) as strong:
        against(desk, strong.url, STRONG, "gate.margin=0.1", code=3)
        against(desk, weak.url, WEAK, "gate.floors.cost_per_1k_usd=1", code=4)
        assert champion(desk) is None

        first = against(desk, weak.url, WEAK, code=0)
        assert first.json["gate"]["simulated"] is False
        assert champion(desk) == key(first)

        against(desk, strong.url, STRONG, "model.source=model2", "gate.margin=0.1", code=3)
        assert champion(desk) == key(first), "a FAIL of another model leaves it"
        second = against(desk, weak.url, WEAK, "model.source=model2", code=0)
        assert key(second) != key(first)
        assert champion(desk) == key(second)

        again = against(desk, weak.url, WEAK, code=0)
        assert "started" not in again.err
        assert champion(desk) == key(second), "to read an old verdict again is no pass"
        assert len(weak.bodies) == len(strong.bodies) == 41


def test_without_a_registered_model_there_is_no_alias(desk: Workplace) -> None:
    with closed(right=False) as weak:
        against(desk, weak.url, WEAK, "tracking.register_model=false", code=0)
    assert champion(desk) is None


def test_an_alias_without_its_version_is_refused_and_said(desk: Workplace) -> None:
    from workbench.tracking import Journal, sync

    journal = Journal.open(desk.state / "runs" / "r", "desk")
    run = journal.start("candidate:base")
    journal.alias(run, "desk", "champion", digest="gone")
    result = sync(journal.directory, uri=f"sqlite:///{desk.folder}/m.db")
    assert result.left == 0
    assert result.refused == ("alias champion: desk has no version of gone, so `champion` stays where it is",)
