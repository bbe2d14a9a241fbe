"""The stage graph: which keys a change moves, what is made again, and that every key of a recipe changes something."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import StandInHub
from tests.support.workplace import GUARDS, NOBODY, RECIPE, TRAIN, Workplace, furnish, questions, stand_in_model
from workbench import pipeline
from workbench.errors import DataError, WorkbenchError
from workbench.plan import fetch_sources, plan
from workbench.recipe import shape
from workbench.recipe.emit import flow
from workbench.recipe.resolved import dump
from workbench.store import Artifact, Store

NEAR = {"evaluate:base:near", "evaluate:tuned:near"}
FAR = {"evaluate:base:far", "evaluate:tuned:far"}
TASK = {"evaluate:base:task", "evaluate:tuned:task"}
TUNED = {"evaluate:tuned:task", "evaluate:tuned:near", "evaluate:tuned:far"}
TRAINED = {"train", "merge"} | TUNED
EVALUATED = TASK | NEAR | FAR
DATA = {"data", "data:near", "data:far"} | TRAINED | EVALUATED
MODEL = {"model"} | TRAINED | EVALUATED

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _mlflow_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)


@pytest.fixture
def desk(tmp_path: Path) -> Workplace:
    """A recipe with every stage. Its model is a stand-in: enough for keys."""
    place = furnish(tmp_path / "desk", RECIPE, TRAIN, GUARDS)
    stand_in_model(place.folder / "model")
    return place


@pytest.fixture
def counter(tmp_path: Path, tiny_model: Path) -> Workplace:
    """A recipe without training, on a tiny real model: a second a run."""
    place = furnish(tmp_path / "counter", RECIPE)
    (place.folder / "model").symlink_to(tiny_model)
    return place


def keys(place: Workplace, *overrides: str, name: str = "desk.yaml") -> dict[str, str]:
    return {stage.name: stage.key for stage in plan(place.load(*overrides, name=name)).stages}


def moved(place: Workplace, *overrides: str) -> set[str]:
    """Names of the stages that the overrides give another key."""
    before, after = keys(place), keys(place, *overrides)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def run_id(place: Workplace, *overrides: str, name: str = "desk.yaml") -> str:
    return plan(place.load(*overrides, name=name)).run_id


# Keys -------------------------------------------------------------------------------------------------------------------


def test_the_stages_of_a_recipe(desk: Workplace) -> None:
    assert list(keys(desk)) == [
        "model", "data", "data:near", "data:far", "train", "merge",
        "evaluate:base:task", "evaluate:base:near", "evaluate:base:far",
        "evaluate:tuned:task", "evaluate:tuned:near", "evaluate:tuned:far",
    ]  # fmt: skip
    assert list(keys(desk, "train.method=full", "train.rank=16")) == [name for name in keys(desk) if name != "merge"]
    assert list(keys(desk, "train=null")) == [name for name in keys(desk) if "tuned" not in name and name not in ("train", "merge")]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("model.dtype=float32", TRAINED | EVALUATED),
        ("model.license=apache-2.0", MODEL),
        ("data.split.seed=2", DATA),
        ("data.limit.train=5", DATA),
        ("task.prompt=Q: {text}", DATA - {"data:far"}),
        ("task.max_new_tokens=5", TASK | NEAR),
        ("task.normalize=false", TASK | NEAR),
        ("train.rank=16", TRAINED),
        ("train.seed=1", TRAINED),
        ("train.early_stopping={metric: score}", TRAINED),
        ("train.save_steps=3", set()),
        ("launch.threads=2", set()),
        ("launch.mixed_precision=bf16", TRAINED),
        ("launch.num_processes=2", TRAINED),
        ("merge.check_tokens=9", {"merge"} | TUNED),
        ("evaluate.batch_tokens=64", EVALUATED),
        ("evaluate.split=validation", TASK),
        ("evaluate.guards.0.floor=0.5", set()),
        ("evaluate.guards.0.limit=4", {"data:near"} | NEAR),
        ("evaluate.guards.1.task.max_new_tokens=3", FAR),
        ("hub.endpoint=http://localhost:1", set()),
        ("tracking.experiment=other", set()),
        ("tracking.register_model=false", set()),
        ("name=other", set()),
    ],
)
def test_a_key_moves_what_stands_on_it_and_nothing_else(desk: Workplace, override: str, stages: set[str]) -> None:
    if "task.prompt" in override:  # rows are read by it; `far` has a prompt of its own, but stays disjoint from what is trained on
        stages = DATA
    assert moved(desk, override) == stages


def test_another_guard_set_leaves_training_alone(desk: Workplace) -> None:
    more = "{name: more, source: near.jsonl, format: prompt_completion, columns: {prompt: text, completion: label}}"
    near = "{name: near, source: near.jsonl, format: prompt_completion, columns: {prompt: text, completion: label}}"
    far = desk.load().recipe.evaluate.guards[1].model_dump_json()
    assert moved(desk, f"evaluate.guards=[{near}, {far}, {more}]") == {"data:more", "evaluate:base:more", "evaluate:tuned:more"}
    assert moved(desk, f"evaluate.guards=[{near}]") == {"data:far"} | FAR


def test_training_later_keeps_what_was_evaluated_before(desk: Workplace) -> None:
    before, after = keys(desk, "train=null"), keys(desk)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("rows.jsonl", DATA),
        ("near.jsonl", {"data:near"} | NEAR),
        ("scoring.py", FAR),
        ("model/config.json", MODEL),
    ],
)
def test_the_content_of_a_file_counts(desk: Workplace, file: str, stages: set[str]) -> None:
    before = keys(desk)
    path = desk.folder / file
    os.utime(path, (1, 1))
    assert keys(desk) == before, "its time does not"
    path.write_text(path.read_text() + "\n")
    after = keys(desk)
    assert {name for name in before if before[name] != after[name]} == stages


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("model.chat_template", MODEL),
        ("task.json_schema", TASK | NEAR),
        ("launch.config_file", TRAINED),
        ("data.held_out.test", DATA),
    ],
)
def test_the_content_of_a_named_file_counts_and_its_name_does_not(desk: Workplace, key: str, stages: set[str]) -> None:
    content = {
        "model.chat_template": "{{ messages }}",
        "task.json_schema": '{"type": "object"}',
        "launch.config_file": "use_cpu: true\n",
        "data.held_out.test": json.dumps({"text": "is it even?", "label": "yes"}) + "\n",
    }[key]
    desk.write("one", content)
    desk.write("copy", content)
    desk.write("two", content.replace("\n", "") + " \n")
    metric = ["task.metric=json_f1", "task.labels=null"] if key == "task.json_schema" else []
    one, copy, two = (keys(desk, *metric, f"{key}={name}") for name in ("one", "copy", "two"))
    assert one == copy
    assert {name for name in one if one[name] != two[name]} == stages


def test_a_metric_that_stops_the_training_is_part_of_it(desk: Workplace) -> None:
    desk.write("one.json", '{"type": "object"}')
    desk.write("two.json", '{"type": "array"}')
    base = ["train.early_stopping={metric: score}", "task.metric=json_f1", "task.labels=null"]
    one, two = (keys(desk, *base, f"task.json_schema={name}.json") for name in ("one", "two"))
    assert {name for name in one if one[name] != two[name]} == TRAINED | TASK | NEAR


def test_comments_order_and_spelt_out_defaults_change_nothing(desk: Workplace) -> None:
    from ruamel.yaml import YAML

    sections = YAML(typ="safe").load(desk.load().text)
    sections["train"] = dict(reversed(sections["train"].items())) | {"alpha": None, "epochs": 1.0}
    turned = "".join(f"{key}: {flow(section)}\n\n# a comment\n" for key, section in reversed(sections.items()))
    desk.write("turned.yaml", turned)
    assert keys(desk, name="turned.yaml") == keys(desk)
    assert run_id(desk, name="turned.yaml") == run_id(desk)


def test_the_resolved_recipe_reproduces_the_run_from_anywhere(desk: Workplace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Workplace(tmp_path / "elsewhere")
    desk.write("schema.json", "{}")
    for overrides in (
        [],
        ["task.metric=json_f1", "task.labels=null", "task.json_schema=schema.json", "train.early_stopping={metric: score}"],
    ):
        elsewhere.write("desk.yaml", dump(desk.load(*overrides)))
        assert keys(elsewhere) == keys(desk, *overrides)
        assert run_id(elsewhere) == run_id(desk, *overrides)


def test_the_run_is_named_after_all_that_it_makes(desk: Workplace) -> None:
    mine = run_id(desk)
    assert mine.startswith("desk-")
    assert run_id(desk, "launch.threads=2") == mine
    assert run_id(desk, "train.rank=9") != mine
    assert run_id(desk, "tracking.experiment=other") != mine, "an MLflow run cannot move to another experiment"
    assert run_id(desk, "name=other").startswith("other-")


# Runs -------------------------------------------------------------------------------------------------------------------


def made(place: Workplace, stage: str, *overrides: str) -> Artifact:
    """The artifact of a stage, with all that it stands on."""
    the_plan, store = plan(place.load(*overrides)), Store(place.state)
    artifacts: dict[str, Artifact] = {}
    for one in the_plan.stages:
        if one.name in ("train", "merge") or "tuned" in one.name:
            continue
        artifacts[one.name] = pipeline.make(
            one, store, {item.name: artifacts[item.name] for item in one.inputs}, lambda metrics, step: None
        )
        if one.name == stage:
            return artifacts[stage]
    raise AssertionError(f"no stage {stage}")


def answers(place: Workplace, *overrides: str, on: str = "task") -> Rows:
    """What the base says, without times."""
    from workbench.evaluation import outcomes

    table = outcomes.read(made(place, f"evaluate:base:{on}", *overrides).path / "outcomes.parquet")
    return [{key: value for key, value in row.items() if key not in ("latency_s", "model_answered")} for row in table.to_pylist()]


def splits(place: Workplace, *overrides: str) -> dict[str, list[str]]:
    folder = made(place, "data", *overrides).path
    return {split: (folder / f"{split}.jsonl").read_text().splitlines() for split in ("train", "validation", "calibration", "test")}


def test_the_same_recipe_twice_makes_nothing_again(finished: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = {path: path.stat().st_mtime_ns for path in (finished.state / "store").rglob("*")}
    first = json.loads((finished.folder / "stdout.json").read_text())
    again = finished("run", "desk.yaml", "--json")
    assert again.code == 0
    assert {path: path.stat().st_mtime_ns for path in (finished.state / "store").rglob("*")} == before
    report = again.json
    assert report["run"].pop("time") >= first["run"].pop("time")
    assert report == first
    assert "started" not in again.err
    assert again.err.count("there already") == len(first["stages"])


def test_a_candidate_has_one_mlflow_run_with_the_same_metric_names(finished: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    from mlflow import MlflowClient

    from workbench.tracking import tracking_uri

    uri = tracking_uri(finished.state)
    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("desk").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    run = json.loads((finished.folder / "stdout.json").read_text())
    parent = by_name[run["run"]["id"]]
    assert set(by_name) == {run["run"]["id"], "candidate:base", "candidate:tuned", *(stage["name"] for stage in run["stages"])}
    assert {one.data.tags.get("mlflow.parentRunId") for one in runs} == {None, parent.info.run_id}
    base, tuned = by_name["candidate:base"].data.metrics, by_name["candidate:tuned"].data.metrics
    assert set(base) == set(tuned)
    assert base["task/score"] == pytest.approx(run["candidates"][0]["score"])
    assert tuned["task/score"] == pytest.approx(run["candidates"][1]["score"])
    assert {"task/score", "near/score", "far/score"} <= set(base)
    assert "train/loss" in by_name["train"].data.metrics
    assert {item.dataset.name for item in by_name["data"].inputs.dataset_inputs} == {
        "desk-train", "desk-validation", "desk-calibration", "desk-test"
    }  # fmt: skip
    (guard,) = by_name["data:near"].inputs.dataset_inputs
    assert guard.dataset.name == "desk-near"
    assert "near.jsonl" in guard.dataset.source
    (version,) = client.search_model_versions("name = 'desk'")
    assert version.tags["workbench.license"] == "mit"
    assert version.tags["workbench.parent_artifact"].startswith("train-")
    assert version.tags["workbench.data_key"] == keys(finished)["data"]


@pytest.mark.parametrize(("until", "last"), [("model", "model"), ("data", "data:far"), ("evaluate", "evaluate:base:far")])
def test_until(tmp_path: Path, tiny_model: Path, until: str, last: str) -> None:
    place = furnish(tmp_path / "until", RECIPE, GUARDS)
    (place.folder / "model").symlink_to(tiny_model)
    said = place("run", "desk.yaml", "--until", until, "--json")
    assert said.code == 0, said.err
    names = list(keys(place))
    assert [stage["name"] for stage in said.json["stages"]] == names[: names.index(last) + 1]
    assert said.json["run"]["status"] == f"stopped after {until}"
    assert len(list((place.state / "store").iterdir())) == names.index(last) + 1
    if until == "model":
        assert place("show").code == 0
        whole = place("run", "desk.yaml", "--json")
        assert whole.err.count("there already") == 1
        assert whole.json["run"]["id"] == said.json["run"]["id"]


def test_set_changes_the_run(counter: Workplace) -> None:
    first = counter("run", "desk.yaml", "--json").json
    second = counter("run", "desk.yaml", "--json", "--set", "evaluate.split=validation", "--set", "data.limit.validation=3").json
    assert first["run"]["id"] != second["run"]["id"]
    assert (second["task"]["split"], second["candidates"][0]["n"]) == ("validation", 3)
    resolved = (Path(second["run"]["folder"]) / "recipe.resolved.yaml").read_text()
    assert "--set data.limit.validation" in resolved


def test_base_only_asks_for_no_training_rows(counter: Workplace) -> None:
    shares = ["data.split.train=0", "data.split.validation=0", "data.split.calibration=0", "data.split.test=1"]
    report = counter("run", "desk.yaml", "--json", *(word for share in shares for word in ("--set", share))).json
    assert [(one["name"], one["kind"], one["n"]) for one in report["candidates"]] == [("base", "base", 80)]
    assert report["training"] is None
    assert report["merge"] is None


def test_rows_that_another_recipe_did_not_need_are_missed_when_they_are_needed(counter: Workplace) -> None:
    shares = ["data.split.train=0.5", "data.split.validation=0.5", "data.split.calibration=0", "data.split.test=0"]
    assert answers(counter, "evaluate.split=validation", *shares)
    with pytest.raises(DataError, match="the split 'test' is empty"):
        answers(counter, *shares)


def test_full_finetune_makes_one_model_and_no_merge(finished: Workplace) -> None:
    overrides = ["train.method=full", "train.rank=16", "train.max_steps=2", "evaluate.guards=[]", "name=whole"]
    said = finished("run", "desk.yaml", "--json", *(word for text in overrides for word in ("--set", text)))
    assert said.code == 0, said.err
    report = said.json
    assert [(one["name"], one["kind"]) for one in report["candidates"]] == [("base", "base"), ("tuned", "full")]
    assert report["merge"] is None
    assert report["training"]["method"] == "full"
    assert report["training"]["trained_parameters"] >= report["model"]["parameters"]
    assert "data: there already" in said.err


def test_a_run_without_its_tracking_server_ends_well_and_is_sent_later(counter: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:7")  # a process warns of each address once
    said = counter("run", "desk.yaml", "--json")
    assert said.code == 0
    assert said.json["candidates"][0]["n"] == 20
    (warning,) = [line for line in said.err.splitlines() if "MLflow" in line]
    assert warning.startswith("warning: MLflow is not reachable")
    assert "workbench sync" in warning

    away = counter("sync")
    assert away.code == 1
    assert away.err.startswith("error: MLflow is not reachable")

    database = f"sqlite:///{counter.folder / 'later.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    sent = counter("sync")
    assert sent.code == 0, sent.err
    assert sent.out.endswith(", 0 left\n")
    from mlflow import MlflowClient

    client = MlflowClient(database, database)
    runs = client.search_runs([client.get_experiment_by_name("desk").experiment_id])
    names = {run.info.run_name: run for run in runs}
    assert set(names) == {said.json["run"]["id"], "model", "data", "evaluate:base:task", "candidate:base"}
    assert names["candidate:base"].data.metrics["task/score"] == pytest.approx(said.json["candidates"][0]["score"])
    assert counter("sync").out == "sent 0 records, 0 left\n"


def test_a_lost_artifact_is_made_again_and_nothing_else(finished: Workplace) -> None:
    outcomes = made(finished, "evaluate:base:near").path / "outcomes.parquet"
    os.truncate(outcomes, 10)
    shown = finished("show", run_id(finished))
    assert shown.code == 2
    assert "an artifact of this run is missing or damaged" in shown.err
    again = finished("run", "desk.yaml", "--json")
    assert again.code == 0
    assert [line for line in again.err.splitlines() if line.endswith("started")] == ["evaluate:base:near: started"]
    first = json.loads((finished.folder / "stdout.json").read_text())
    strip = {"tokens_per_s", "peak_memory_bytes", "load_seconds"}
    assert [{k: v for k, v in one.items() if k not in strip} for one in again.json["candidates"]] == [
        {k: v for k, v in one.items() if k not in strip} for one in first["candidates"]
    ]
    assert again.json["guards"] == first["guards"]


# Every key of a recipe changes something ---------------------------------------------------------------------------------
# (Those of train, launch and merge have their tests in tests/training, those of quantize and select in tests/quantization, those of
# baseline and gate in tests/test_gate_keys.py.)


@dataclass(frozen=True)
class Effect:
    """What is different when a key is.

    Attributes:
        observe: called with a workplace and overrides; under `one` it must work, under `other` it must come to something else.
        one, other: overrides, of which the first sets the key.
    """

    observe: Callable[..., object]
    one: tuple[str, ...]
    other: tuple[str, ...]


def model_facts(place: Workplace, *overrides: str) -> object:
    return dict(made(place, "model", *overrides).facts)


def run_folder(place: Workplace, *overrides: str) -> Path:
    folder = pipeline.run(place.load(*overrides), place.state)
    assert folder is not None
    return folder


def recorded(kind: str, key: str) -> Callable[..., object]:
    """What the journal of a run says."""

    def observe(place: Workplace, *overrides: str) -> object:
        lines = (run_folder(place, *overrides) / "tracking.jsonl").read_text().splitlines()
        return [record[key] for record in map(json.loads, lines) if record["kind"] == kind]

    return observe


def run_record(place: Workplace, *overrides: str) -> object:
    return json.loads((run_folder(place, *overrides) / "run.json").read_text())["recipe"]


def forward_passes(place: Workplace, *overrides: str) -> object:
    """Rows of one forward pass share its time."""
    import pyarrow.parquet as pq

    return len(set(pq.read_table(made(place, "evaluate:base:task", *overrides).path / "outcomes.parquet")["latency_s"].to_pylist()))


def reported_guards(place: Workplace, *overrides: str) -> object:
    from workbench import report

    return report.read(run_folder(place, *overrides))["guards"]


def guard_answers(place: Workplace, *overrides: str) -> object:
    return answers(place, *overrides, on=place.load(*overrides).recipe.evaluate.guards[0].name)


def accepted(place: Workplace, *overrides: str) -> object:
    return place.load(*overrides).recipe.model_dump()


def fetched(place: Workplace, *overrides: str) -> object:
    return sorted(path.name for path in fetch_sources(place.load(*overrides))["model.source"].path.rglob("*"))


def graded(output: str, reference: str, *, guard: bool = False) -> Callable[..., object]:
    """The score of a given output."""

    def observe(place: Workplace, *overrides: str) -> object:
        from workbench.evaluation.metrics import scorer

        recipe = place.load(*overrides).recipe
        task = recipe.evaluate.guards[0].task if guard else recipe.task
        assert task is not None
        return scorer(task, base=place.folder).score(output, [reference], {})

    return observe


MODEL_HELD = "hf://org/held@main"
MODEL_PRIVATE = "hf://org/private@main"


def free(key: str, *rest: str) -> tuple[str, ...]:
    """Overrides for a metric that needs no labels."""
    return (key, *rest, "task.metric=exact_match", "task.labels=null")


def guard(key: str, value: str) -> tuple[str, ...]:
    return (f"evaluate.guards.0.{key}={value}",)


def guard_task(**entries: object) -> tuple[str, ...]:
    return guard("task", json.dumps({"prompt": "{text}", "metric": "exact_match", "max_new_tokens": 2} | entries))


EFFECTS: dict[str, Effect] = {
    "name": Effect(run_record, ("name=one",), ("name=two",)),
    "model.source": Effect(answers, ("model.source=model",), ("model.source=model2",)),
    "model.license": Effect(model_facts, ("model.license=mit",), ("model.license=apache-2.0",)),
    "model.dtype": Effect(answers, ("model.dtype=bfloat16",), ("model.dtype=float32",)),
    "model.chat_template": Effect(
        answers, ("model.chat_template=null", "task.chat=true"), ("model.chat_template=loud.jinja", "task.chat=true")
    ),
    "model.trust_remote_code": Effect(
        fetched,
        ("model.trust_remote_code=false", f"model.source={MODEL_HELD}"),
        ("model.trust_remote_code=true", f"model.source={MODEL_HELD}"),
    ),
    "data.source": Effect(splits, ("data.source=rows.jsonl",), ("data.source=other.jsonl",)),
    "data.format": Effect(splits, ("data.format=prompt_completion",), ("data.format=evals",)),
    "data.columns.prompt": Effect(
        splits, ("data.columns.prompt=text", "task.prompt=null"), ("data.columns.prompt=twice", "task.prompt=null")
    ),
    "data.columns.completion": Effect(splits, free("data.columns.completion=label"), free("data.columns.completion=topic")),
    "data.columns.metadata": Effect(splits, ("data.columns.metadata=[topic]",), ("data.columns.metadata=[]",)),
    "data.split.train": Effect(splits, ("data.split.train=0.5", "data.split.test=0.2"), ("data.split.train=0.4", "data.split.test=0.3")),
    "data.split.validation": Effect(
        splits, ("data.split.validation=0.2", "data.split.test=0.2"), ("data.split.validation=0.1", "data.split.test=0.3")
    ),
    "data.split.calibration": Effect(
        splits, ("data.split.calibration=0.1", "data.split.test=0.2"), ("data.split.calibration=0", "data.split.test=0.3")
    ),
    "data.split.test": Effect(splits, ("data.split.test=0.2", "data.split.train=0.5"), ("data.split.test=0.3", "data.split.train=0.4")),
    "data.split.seed": Effect(splits, ("data.split.seed=1",), ("data.split.seed=2",)),
    **{
        f"data.held_out.{split}": Effect(splits, (f"data.held_out.{split}=null",), (f"data.held_out.{split}=other.jsonl",))
        for split in ("validation", "calibration", "test")
    },
    **{
        f"data.limit.{split}": Effect(splits, (f"data.limit.{split}=2",), (f"data.limit.{split}=3",))
        for split in ("train", "validation", "calibration", "test")
    },
    "task.prompt": Effect(answers, ("task.prompt={text}",), ("task.prompt=Q: {text}",)),
    "task.chat": Effect(answers, ("task.chat=false",), ("task.chat=true",)),
    "task.system": Effect(answers, ("task.system=null", "task.chat=true"), ("task.system=Be brief.", "task.chat=true")),
    "task.metric": Effect(
        graded("no, yes", "yes"), ("task.metric=exact_match", "task.labels=null"), ("task.metric=contains", "task.labels=null")
    ),
    "task.labels": Effect(answers, ('task.labels=["yes", "no"]',), ('task.labels=["yes", "no", "perhaps"]',)),
    "task.normalize": Effect(graded("Yes.", "yes"), free("task.normalize=true"), free("task.normalize=false")),
    "task.tolerance": Effect(
        graded("10.4", "10"),
        ("task.tolerance=0", "task.metric=numeric", "task.labels=null"),
        ("task.tolerance=0.1", "task.metric=numeric", "task.labels=null"),
    ),
    "task.pattern": Effect(
        graded("it is yes", "yes"),
        ("task.pattern=is (.*)", "task.metric=regex", "task.labels=null"),
        ("task.pattern=^yes$", "task.metric=regex", "task.labels=null"),
    ),
    "task.json_schema": Effect(
        graded('{"a": 1}', '{"a": 1}'),
        ("task.json_schema=null", "task.metric=json_f1", "task.labels=null"),
        ("task.json_schema=nothing.json", "task.metric=json_f1", "task.labels=null"),
    ),
    "task.function": Effect(
        answers,
        ("task.function=scoring:grade", "task.metric=function", "task.labels=null"),
        ("task.function=scoring:zero", "task.metric=function", "task.labels=null"),
    ),
    "task.max_new_tokens": Effect(answers, free("task.max_new_tokens=1"), free("task.max_new_tokens=3")),
    # a random model says the last token of its prompt again and again
    "task.stop": Effect(answers, free("task.stop=[]", "task.prompt={text}"), free('task.stop=["?"]', "task.prompt={text}")),
    "evaluate.engine": Effect(accepted, ("evaluate.engine=transformers",), ("evaluate.engine=llama.cpp",)),
    "evaluate.split": Effect(answers, ("evaluate.split=test",), ("evaluate.split=validation",)),
    "evaluate.batch_tokens": Effect(forward_passes, ("evaluate.batch_tokens=4096",), ("evaluate.batch_tokens=1",)),
    "evaluate.guards[].name": Effect(reported_guards, guard("name", "one"), guard("name", "two")),
    "evaluate.guards[].source": Effect(guard_answers, guard("source", "near.jsonl"), guard("source", "other.jsonl")),
    "evaluate.guards[].format": Effect(guard_answers, guard("format", "prompt_completion"), guard("format", "chat")),
    "evaluate.guards[].columns.prompt": Effect(
        guard_answers,
        (*guard("columns.prompt", "text"), *guard_task(prompt=None)),
        (*guard("columns.prompt", "twice"), *guard_task(prompt=None)),
    ),
    "evaluate.guards[].columns.completion": Effect(
        guard_answers, (*guard("columns.completion", "label"), *guard_task()), (*guard("columns.completion", "topic"), *guard_task())
    ),
    "evaluate.guards[].columns.metadata": Effect(guard_answers, guard("columns.metadata", "[]"), guard("columns.metadata", "[topic]")),
    "evaluate.guards[].task.prompt": Effect(guard_answers, guard_task(prompt="{text}"), guard_task(prompt="Q: {text}")),
    "evaluate.guards[].task.chat": Effect(guard_answers, guard_task(chat=False), guard_task(chat=True)),
    "evaluate.guards[].task.system": Effect(guard_answers, guard_task(chat=True), guard_task(chat=True, system="Be brief.")),
    "evaluate.guards[].task.metric": Effect(
        graded("no, yes", "yes", guard=True), guard_task(metric="exact_match"), guard_task(metric="contains")
    ),
    "evaluate.guards[].task.labels": Effect(
        guard_answers, guard_task(metric="label", labels=["yes", "no"]), guard_task(metric="label", labels=["yes", "no", "perhaps"])
    ),
    "evaluate.guards[].task.normalize": Effect(graded("Yes.", "yes", guard=True), guard_task(normalize=True), guard_task(normalize=False)),
    "evaluate.guards[].task.tolerance": Effect(
        graded("10.4", "10", guard=True), guard_task(metric="numeric"), guard_task(metric="numeric", tolerance=0.1)
    ),
    "evaluate.guards[].task.pattern": Effect(
        graded("it is yes", "yes", guard=True), guard_task(metric="regex", pattern="is (.*)"), guard_task(metric="regex", pattern="^yes$")
    ),
    "evaluate.guards[].task.json_schema": Effect(
        graded('{"a": 1}', '{"a": 1}', guard=True), guard_task(metric="json_f1"), guard_task(metric="json_f1", json_schema="nothing.json")
    ),
    "evaluate.guards[].task.function": Effect(
        guard_answers, guard_task(metric="function", function="scoring:grade"), guard_task(metric="function", function="scoring:zero")
    ),
    "evaluate.guards[].task.max_new_tokens": Effect(guard_answers, guard_task(max_new_tokens=1), guard_task(max_new_tokens=3)),
    "evaluate.guards[].task.stop": Effect(guard_answers, guard_task(), guard_task(stop=["?"])),
    "evaluate.guards[].limit": Effect(guard_answers, guard("limit", "3"), guard("limit", "4")),
    "evaluate.guards[].floor": Effect(reported_guards, guard("floor", "0.1"), guard("floor", "0.9")),
    "hub.endpoint": Effect(
        fetched, ("hub.endpoint=null", f"model.source={MODEL_HELD}"), ("hub.endpoint=http://127.0.0.1:9", f"model.source={MODEL_HELD}2")
    ),
    "hub.token_env": Effect(
        fetched,
        ("hub.token_env=RIGHT_TOKEN", f"model.source={MODEL_PRIVATE}"),
        ("hub.token_env=WRONG_TOKEN", f"model.source={MODEL_PRIVATE}"),
    ),
    "tracking.experiment": Effect(recorded("journal", "experiment"), ("tracking.experiment=one",), ("tracking.experiment=two",)),
}

#: Needs a trained model: has a test of its own below.
ELSEWHERE = {"tracking.register_model"}

#: Sections whose keys have a table of their own, beside what they are about.
THEIRS = ("train.", "launch.", "merge.", "quantize[", "select.", "baseline.", "gate.", "drift.")


def test_no_key_is_forgotten() -> None:
    mine = {key for key in map(str, shape.keys()) if not key.startswith(THEIRS)}
    assert EFFECTS.keys() | ELSEWHERE == mine
    assert not EFFECTS.keys() & ELSEWHERE


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Workplace]:
    """A workplace that has whatever an effect asks for, and a hub that holds two models."""
    from tests.support.tiny import make_model

    place = furnish(tmp_path_factory.mktemp("effects") / "desk", RECIPE, GUARDS)
    (place.folder / "model").symlink_to(tiny_model)
    make_model(place.folder / "model2", seed=1)
    place.rows("rows.jsonl", [{**row, "twice": f"{row['text']} {row['text']}"} for row in questions(80)])
    place.rows("near.jsonl", [{**row, "twice": f"{row['text']} {row['text']}"} for row in questions(12, "figure")])
    place.rows("other.jsonl", questions(40, "digit"))
    place.write("nothing.json", '{"not": {}}')
    place.write("loud.jinja", "{% for message in messages %}LOUD {{ message['content'] }}<|im_end|>{% endfor %}")
    place.write("scoring.py", (place.folder / "scoring.py").read_text() + "\n\ndef zero(output, reference, metadata):\n    return 0\n")
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()} | {"modeling_own.py": b"raise SystemExit\n"}
    with pytest.MonkeyPatch.context() as patch, StandInHub() as hub:
        for repository in ("org/held", "org/private"):
            hub.add(repository, files)
        hub.protect("org/private", token="right-token-value")
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("RIGHT_TOKEN", "right-token-value")
        patch.setenv("WRONG_TOKEN", "wrong-token-value")
        patch.setenv("WORKBENCH_CACHE", str(place.folder / "cache"))
        yield place


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_changes_the_result(everything: Workplace, key: str) -> None:
    effect = EFFECTS[key]
    written = effect.one[0].partition("=")[0], effect.other[0].partition("=")[0]
    assert key.replace("[]", ".0").startswith(written[0]), "the first override sets the key"
    assert written[0] == written[1]
    one = effect.observe(everything, *effect.one)
    try:
        other = effect.observe(everything, *effect.other)
    except WorkbenchError as error:
        other = error
    assert one != other


def test_register_model(finished: Workplace) -> None:
    names = recorded("model", "registered_name")
    assert names(finished, "tracking.register_model=true")[-1] == "desk"
    assert names(finished, "tracking.register_model=false") == [None]
