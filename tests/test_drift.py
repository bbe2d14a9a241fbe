"""`workbench drift` from end to end: a run whose baseline a real simulator answered, and what it says after that simulator changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.playing import logged
from tests.support.workplace import NOBODY, Said, Workplace, furnish, questions
from workbench.simulator.server import running
from workbench.simulator.settings import Change, Latency, Simulator
from workbench.stages.stale import dependents, stale
from workbench.store import Store

MODEL = "closed-2026-01-01"
RECIPE = """\
name: desk
model: {source: model, license: mit}
data:
  source: rows.jsonl
  format: prompt_completion
  columns: {prompt: text, completion: label, metadata: [topic]}
  split: {train: 0.1, validation: 0.1, calibration: 0.1, test: 0.7, seed: 1}
task: {prompt: "{text}\\nAnswer: ", metric: contains, max_new_tokens: 2}
baseline: {provider: openai, model: closed-2026-01-01, url: "http://127.0.0.1:9/v1", price: {input: 1, output: 4}}
gate: {margin: 0.2}
"""
#: Enough to see what is looked for, and few enough for short tests.
FEW = ("--canaries", "60", "--repeats", "2")


@pytest.fixture(autouse=True)
def _no_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("workbench.baselines.retry.FIRST_WAIT", 0.01)


def playing(folder: Path, suffix: str = "", **settings: Any) -> AbstractContextManager[str]:
    """A simulated closed model that knows every answer; its words may have a suffix."""
    path = folder / f"references{len(list(folder.glob('references*')))}.jsonl"
    rows = [{"prompt": f"{row['text']}\nAnswer: ", "reference": row["label"] + suffix} for row in questions(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"references": str(path), "model": MODEL, "accuracy": 0.9, "seed": 3, "keyless": True} | settings
    return running(Simulator(**keys))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """A workplace in which the recipe has run against a simulator."""
    place = furnish(tmp_path_factory.mktemp("drift") / "desk", RECIPE)
    place.rows("rows.jsonl", questions(200))
    shutil.copytree(tiny_model, place.folder / "model")
    with pytest.MonkeyPatch.context() as patch, playing(place.folder) as url:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        said = place("run", "desk.yaml", "--set", f"baseline.url={url}")
    assert "Gate" in said.out, said.err
    return place


@pytest.fixture
def desk(original: Workplace, tmp_path: Path) -> Workplace:
    """A copy of it: a mark, once set, stays."""
    return Workplace(Path(shutil.copytree(original.folder, tmp_path / "desk")))


def drift(place: Workplace, url: str, *options: str) -> Said:
    return place("drift", "desk.yaml", "--set", f"baseline.url={url}", *FEW, *options)


def baseline(place: Workplace) -> str:
    (path,) = (place.state / "store").glob("evaluate-baseline-task-*")
    return path.name


def checks(place: Workplace) -> list[Path]:
    """Every folder of a check, complete or not."""
    return sorted((place.state / "drift").glob("*"))


def shown(place: Workplace) -> dict[str, Any]:
    return dict(place("show", "--json").json)


# The four findings -------------------------------------------------------------------------------------------------------


def test_the_same_model_is_the_same(desk: Workplace) -> None:
    with playing(desk.folder) as url:
        said = drift(desk, url)
    assert said.code == 0, said.err
    assert said.out.startswith("SIMULATED same: it answers as it did when it was recorded")
    assert "the model of one's own: unchanged, by digest: base (model-" in said.out
    (folder,) = checks(desk)
    assert {"drift.json", "outcomes.parquet", "transcript.jsonl", "tracking.jsonl"} == {path.name for path in folder.iterdir()}
    result = json.loads((folder / "drift.json").read_text())
    assert (result["verdict"], result["findings"], result["canaries"], result["repeats"]) == ("same", ["same"], 60, [1, 2])
    assert result["recorded"] == result["fresh"] and result["baseline"] == baseline(desk) and result["stale"] == []
    assert result["simulated"] is True
    assert 0 < result["spent_usd"] < 0.01
    assert stale(desk.state, baseline(desk)) is None
    assert shown(desk)["gate"]["stale"] is None and "STALE" not in desk("show").out
    from workbench.evaluation import outcomes

    rows = outcomes.read(folder / "outcomes.parquet").to_pylist()
    assert len(rows) == 120 and {row["repeat"] for row in rows} == {0, 1} and len({row["example_id"] for row in rows}) == 60
    assert {row["split"] for row in rows} == {"test"} and {row["simulated"] for row in rows} == {True}
    then = outcomes.read(desk.state / "store" / baseline(desk) / "outcomes.parquet").to_pylist()
    assert {row["example_id"] for row in rows} < {row["example_id"] for row in then}
    assert sum(row["score"] for row in rows) / 120 == result["score"]["fresh"]


def test_other_words_with_the_same_score(desk: Workplace) -> None:
    with playing(desk.folder, " indeed") as url:
        said = drift(desk, url, "--json")
    assert said.code == 0, said.err
    assert (said.json["verdict"], said.json["findings"]) == ("wording", ["wording"])
    assert said.json["wording"]["changed"] == 60 and said.json["score"]["difference"] == 0
    assert stale(desk.state, baseline(desk)) is None


def test_another_score_of_what_calls_itself_the_same_version(desk: Workplace) -> None:
    before = desk.store()
    with playing(desk.folder, accuracy=0.55) as url:
        said = drift(desk, url, "--json")
    assert said.code == 3, said.err
    assert said.json["verdict"] == "score" and said.json["recorded"] == said.json["fresh"]
    assert said.json["score"]["p_value"] <= 0.01 and said.json["score"]["difference"] < -0.15
    (gate,) = (desk.state / "store").glob("gate-*")
    assert said.json["stale"] == [gate.name]
    assert desk.store() == before, "artifacts are immutable"

    mark = stale(desk.state, baseline(desk))
    assert mark is not None
    assert mark == {"since": said.json["time"], "verdict": "score", "check": said.json["id"], "later": []}
    report = shown(desk)
    assert report["gate"]["stale"] == report["drifted"] == mark
    assert f"the gate is STALE since {mark['since'][:10]}: the closed model has drifted, its score changed" in desk("show").out

    with playing(desk.folder) as url:
        assert drift(desk, url).code == 0
    assert stale(desk.state, baseline(desk)) == {**mark, "later": ["same"]}, "asking until nothing is found takes no mark away"
    assert "checks since then: same" in desk("show").out


def test_another_version_from_a_certain_request_on(desk: Workplace) -> None:
    change = Change(model="closed-2026-02-02", after_requests=120, accuracy=0.9)
    with playing(desk.folder, change=change) as url:
        first = drift(desk, url, "--json")
        second = drift(desk, url)
    assert (first.code, first.json["verdict"]) == (0, "same"), first.err
    assert second.code == 3, second.err
    assert second.out.startswith("SIMULATED version: DRIFTED: another version answers than was recorded")
    assert f"recorded {MODEL} (fp_" in second.out and "now closed-2026-02-02 (fp_" in second.out
    (gate,) = (desk.state / "store").glob("gate-*")
    assert f"stale from now on: {gate.name}" in second.out
    assert "is STALE since" in desk("show").out and "another version answers" in desk("show").out


def test_noise_of_a_model_at_temperature_is_no_drift(desk: Workplace) -> None:
    noisy = ("--set", "baseline.temperature=0.7", "--set", "baseline.repeats=3")
    with playing(desk.folder, noise=1.0) as url:  # it goes on drawing: another answer to every repeat, whenever it is asked
        address = ("--set", f"baseline.url={url}")
        assert "Gate" in desk("run", "desk.yaml", *address, *noisy).out
        found = desk("drift", "desk.yaml", *address, *noisy, *FEW, "--json")
    assert found.code == 0, found.err
    assert found.json["repeats"] == [3, 2]
    assert found.json["wording"]["within"] > 0.05 and found.json["wording"]["between"] > 0.05, "it is noisy"
    assert found.json["verdict"] == "same"
    with playing(desk.folder, noise=1.0, accuracy=0.5) as url:
        found = desk("drift", "desk.yaml", "--set", f"baseline.url={url}", *noisy, *FEW, "--json")
    assert (found.code, found.json["verdict"]) == (3, "score"), found.err


# Ways to ask -------------------------------------------------------------------------------------------------------------


def test_a_run_is_asked_like_its_recipe_and_always_the_same_canaries(desk: Workplace) -> None:
    with playing(desk.folder, log=str(desk.folder / "log.jsonl")) as url:
        said = desk("drift", "desk", "--set", f"baseline.url={url}", "--canaries", "30", "--repeats", "2", "--json")
    assert said.code == 0, said.err
    assert said.json["run"].startswith("desk-") and said.json["canaries"] == 30
    assert len(logged(desk.folder / "log.jsonl")) == 60
    with playing(desk.folder) as url:
        wide = drift(desk, url, "--json")
    from workbench.evaluation import outcomes

    few, many = (
        set(outcomes.read(desk.state / "drift" / one["id"] / "outcomes.parquet")["example_id"].to_pylist())
        for one in (said.json, wide.json)
    )
    assert len(few) == 30 and few < many


@pytest.mark.parametrize(
    ("key", "one", "other"), [("canaries", 20, 30), ("repeats", 2, 3), ("alpha", 0.01, 0.05), ("budget_usd", 1.0, 1e-6)]
)
def test_a_key_of_the_recipe_changes_the_check(desk: Workplace, key: str, one: float, other: float) -> None:
    found = []
    with playing(desk.folder) as url:
        for value in (one, other):
            keys = {"canaries": 20, "repeats": 2, key: value}
            sets = [word for name, setting in keys.items() for word in ("--set", f"drift.{name}={setting}")]
            said = desk("drift", "desk.yaml", "--set", f"baseline.url={url}", *sets, "--json")
            found.append((said.code, [said.json[name] for name in ("canaries", "repeats", "alpha")] if said.code == 0 else said.err))
    assert found[0] != found[1]


def test_every_key_has_that_test() -> None:
    from workbench.recipe.shape import keys

    assert {str(key) for key in keys() if str(key).startswith("drift.")} == {
        f"drift.{key}" for key in ("canaries", "repeats", "alpha", "budget_usd")
    }


def test_more_canaries_than_there_are_asks_all(desk: Workplace) -> None:
    with playing(desk.folder) as url:
        said = drift(desk, url, "--canaries", "5000", "--json")
    rows = len((next((desk.state / "store").glob("data-*")) / "test.jsonl").read_text().splitlines())
    assert (said.code, said.json["canaries"]) == (0, rows)


def test_a_rehearsal_with_the_recipes_own_simulator(desk: Workplace) -> None:
    line = next(line for line in RECIPE.splitlines() if line.startswith("baseline"))
    played = "baseline: {provider: simulator, model: closed-2026-01-01, simulator: {accuracy: 0.8}}"
    desk.write("played.yaml", RECIPE.replace(line, played))
    assert "Gate" in desk("run", "played.yaml").out
    said = desk("drift", "played.yaml", *FEW)
    assert said.code == 0, said.err
    assert said.out.startswith("SIMULATED same")


def test_mlflow_gets_a_run_of_the_recipes_experiment(desk: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with playing(desk.folder, accuracy=0.5) as url:
        said = drift(desk, url, "--json")
    assert said.code == 3, said.err
    from mlflow import MlflowClient

    from workbench.tracking import tracking_uri

    client = MlflowClient(tracking_uri(desk.state), tracking_uri(desk.state))
    experiment = client.get_experiment_by_name("desk")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == f"drift-{said.json['id']}" and run.info.status == "FINISHED"
    assert run.data.tags["workbench.drift"] == "score" and run.data.tags["workbench.simulated"] == "True"
    assert run.data.tags["workbench.baseline"] == baseline(desk)
    assert run.data.metrics["drift/difference"] == pytest.approx(said.json["score"]["difference"])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"drift.json", "outcomes.parquet"}


# What is refused, and what goes wrong ------------------------------------------------------------------------------------


def refused(said: Said, says: str, code: int = 2) -> None:
    assert said.code == code, said.err
    assert "Traceback" not in said.err and not said.out
    assert says in said.err and "\n  fix: " in said.err, said.err


def test_nobody_to_ask(desk: Workplace) -> None:
    line = next(line for line in RECIPE.splitlines() if line.startswith("baseline"))
    desk.write("answers.jsonl", "{}\n")
    desk.write("recorded.yaml", RECIPE.replace(line, "baseline: {provider: transcript, transcript: answers.jsonl}"))
    desk.write("none.yaml", RECIPE.replace(line + "\ngate: {margin: 0.2}\n", ""))
    refused(desk("drift", "recorded.yaml"), "recorded.yaml:9:22: the baseline is a file of recorded answers: there is nobody to ask again")
    refused(desk("drift", "none.yaml"), "the recipe has no `baseline`: there is no closed model to ask")
    refused(desk("drift", "desk.yaml", "--set", "task.max_new_tokens=3"), "this recipe was not run as it stands")
    refused(desk("drift", "desk", "--set", "baseline.temperature=1.0"), "would be asked or scored otherwise than it was recorded")
    refused(desk("drift", "gone.yaml"), "gone.yaml: no such file")
    refused(desk("drift", "gone"), "there is no run 'gone'")
    refused(desk("drift", "desk.yaml", "--repeats", "1"), "repeats is 1")
    refused(desk("drift", "desk.yaml", "--alpha", "2"), "alpha is 2")
    assert checks(desk) == []


def test_the_budget_holds(desk: Workplace) -> None:
    with playing(desk.folder, log=str(desk.folder / "log.jsonl")) as url:
        said = drift(desk, url, "--budget", "0.002")
        refused(said, "drift.budget_usd: the budget is used up ($0.00")
        asked = len(logged(desk.folder / "log.jsonl"))
        assert 0 < asked < 120
        assert drift(desk, url).code == 0
        assert len(logged(desk.folder / "log.jsonl")) == 120, "what was answered today is not asked again"


def test_without_answers_there_is_no_verdict(desk: Workplace) -> None:
    refused(desk("drift", "desk.yaml", *FEW, "--set", "baseline.attempts=1"), "of 120 questions got no answer", code=1)
    assert [path.name[0] for path in checks(desk)] == ["."]
    assert stale(desk.state, baseline(desk)) is None


def test_own_weights_that_changed_are_named(desk: Workplace) -> None:
    (weights,) = (desk.state / "store").glob("model-*/model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with playing(desk.folder) as url:
        said = drift(desk, url)
    assert said.code == 0, said.err
    assert f"base ({weights.parent.name}) CHANGED ON DISK: model.safetensors" in said.out
    assert "unchanged" not in said.out


def test_a_kill_leaves_nothing_half_written(desk: Workplace) -> None:
    log = desk.folder / "log.jsonl"
    with playing(desk.folder, accuracy=0.5, latency=Latency(p50_s=0.2, sigma=0.0), log=str(log)) as url:
        command = [sys.executable, "-m", "workbench", "drift", "desk.yaml", "--set", f"baseline.url={url}", *FEW]
        process = subprocess.Popen(command, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            answered(desk, 20)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        (partial,) = checks(desk)
        assert partial.name.startswith(".") and partial.name.endswith(".partial")
        assert not (partial / "drift.json").exists()
        assert stale(desk.state, baseline(desk)) is None and "STALE" not in desk("show").out
        said = drift(desk, url, "--json")
    assert (said.code, said.json["canaries"]) == (3, 60), said.err
    assert len(logged(log)) <= 120 + 8, "only what was in flight is asked again"
    (folder,) = checks(desk)
    assert folder.name == said.json["id"]


def test_yesterdays_answers_are_not_todays(desk: Workplace) -> None:
    with playing(desk.folder, log=str(desk.folder / "log.jsonl")) as url:
        assert drift(desk, url, "--budget", "0.002").code == 2
        (partial,) = checks(desk)
        yesterday = time.time() - 25 * 3600
        for path in (*partial.iterdir(), partial):
            os.utime(path, (yesterday, yesterday))
        asked = len(logged(desk.folder / "log.jsonl"))
        assert drift(desk, url).code == 0
        assert len(logged(desk.folder / "log.jsonl")) == asked + 120


def answered(place: Workplace, count: int) -> None:
    """Wait until a check that runs has so many answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines: Iterator[str] = (
            line for path in (place.state / "drift").glob(".*/transcript.jsonl") for line in path.read_text().splitlines()
        )
        if sum('"kind": "answer"' in line for line in lines) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("it never got that far")


# What depends on what ----------------------------------------------------------------------------------------------------


def test_what_was_made_of_the_answers_directly_or_not(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(stage: str, **inputs: str) -> Any:
        with store.staging(stage, f"{stage}key") as staging:
            named = {name.replace("_", ":"): key for name, key in inputs.items()}
            return store.publish(staging, stage, f"{stage}key", ingredients={"inputs": named}, facts={}, seconds=0.0)

    answers = make("evaluate:baseline:task")
    make("evaluate:base:task")
    make("gate", evaluate_baseline_task=answers.key)
    make("gate:managed", evaluate_baseline_task="another")
    make("route", evaluate_baseline_task=answers.key)
    make("export", route="routekey")
    assert dependents(store, answers) == ["export-exportkey", "gate-gatekey", "route-routekey"]
