"""A run with quantised variants: what it reports, from what, what a change makes again, and what never begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import NOBODY, QUANTIZE, RECIPE, TRAIN, Said, Workplace, furnish, questions
from workbench.errors import StoreError
from workbench.evaluation.statistics import recovery
from workbench.plan import plan
from workbench.recipe.schema import Bounds
from workbench.stages import evidence
from workbench.stages.quantize import PROBES
from workbench.stages.select import beyond, pick
from workbench.store import Artifact, Store

VARIANTS = ("int8", "gptq-4bit-g32", "qlora")


@pytest.fixture(autouse=True)
def _mlflow_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)


@pytest.fixture
def shown(quantized: Workplace) -> dict[str, Any]:
    run = json.loads((quantized.folder / "stdout.json").read_text())["run"]["id"]
    said = quantized("show", run, "--json")
    assert said.code == 0 and said.err == ""
    return dict(said.json)


def artifact(place: Workplace, shown: dict[str, Any], stage: str) -> Path:
    (name,) = [one["artifact"] for one in shown["stages"] if one["name"] == stage]
    return place.state / "store" / str(name)


def answers(place: Workplace, shown: dict[str, Any], candidate: str, on: str = "task") -> dict[str, tuple[float, str]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(artifact(place, shown, f"evaluate:{candidate}:{on}") / "outcomes.parquet").to_pylist()
    return {row["example_id"]: (row["score"], row["output"]) for row in rows}


def facts(place: Workplace, shown: dict[str, Any], stage: str) -> dict[str, Any]:
    return dict(json.loads((artifact(place, shown, stage) / "artifact.json").read_text())["facts"])


# What is reported -------------------------------------------------------------------------------------------------------


def test_every_variant_is_a_candidate(quantized: Workplace, shown: dict[str, Any]) -> None:
    found = {one["name"]: one for one in shown["candidates"]}
    assert list(found) == ["base", "tuned", *VARIANTS]
    for name in VARIANTS:
        row = found[name]
        assert (row["kind"], row["parent"], row["not_exportable"]) == ("quantized", "tuned", [])
        weights = artifact(quantized, shown, f"quantize:{name}")
        assert row["size_bytes"] == sum(file.stat().st_size for file in weights.rglob("*.safetensors")) < found["tuned"]["size_bytes"]
        assert row["peak_memory_bytes"] == facts(quantized, shown, f"footprint:{name}")["peak_memory_bytes"] > 50e6
        beside = row["measured_beside_parent"]
        assert (beside["candidate"], beside["parent"], beside["parent_kernel"]) == (name, "tuned", "Linear")
        assert beside["speed"]["decode_ratio"] > 0 and beside["fidelity"]["kl_mean"] >= 0
        made = row["quantization"]
        assert made["probes"] == made["reloaded_identically"] + made["reloaded_near_ties"] == PROBES
    assert "Linear8bitLt" in found["int8"]["measured_beside_parent"]["kernel"]
    assert "Linear4bit" in found["qlora"]["measured_beside_parent"]["kernel"]
    assert (artifact(quantized, shown, "quantize:qlora") / "adapter" / "adapter_model.safetensors").exists()
    for name in ("base", "tuned"):
        assert found[name]["quantization"] is found[name]["measured_beside_parent"] is found[name]["recovery"] is None


def test_numbers_come_from_the_outcomes(quantized: Workplace, shown: dict[str, Any]) -> None:
    parent = answers(quantized, shown, "tuned")
    for row in shown["candidates"][2:]:
        own = answers(quantized, shown, row["name"])
        assert own.keys() == parent.keys() and len(own) == 20
        scores, against = ([said[example][0] for example in parent] for said in (own, parent))
        assert row["score"] == pytest.approx(sum(scores) / 20)
        assert row["recovery"] == pytest.approx(sum(scores) / sum(against))
        interval = recovery(scores, against)
        assert (row["recovery_low"], row["recovery_high"]) == (interval.low, interval.high)
        assert row["difference_to_parent"]["estimate"] == pytest.approx((sum(scores) - sum(against)) / 20)
        assert row["agreement"] == sum(own[example][1] == parent[example][1] for example in parent) / 20


def test_dominated_means_as_good_nowhere(shown: dict[str, Any]) -> None:
    """The definition, written out over the numbers of the report."""

    def point(row: dict[str, Any]) -> tuple[float, ...]:
        beside = row["measured_beside_parent"]
        slowdown = 1 / beside["speed"]["decode_ratio"] if beside else 1.0
        return (row["score"], -row["size_bytes"], -row["peak_memory_bytes"], -slowdown)

    rows = {row["name"]: row for row in shown["candidates"] if row["name"] != "base"}
    assert shown["candidates"][0]["dominated_by"] is None, "the base is not measured beside them"
    for name, row in rows.items():
        mine = point(row)
        better = [
            other
            for other, one in rows.items()
            if other != name
            and all(a >= b for a, b in zip(point(one), mine, strict=True))
            and any(a > b for a, b in zip(point(one), mine, strict=True))
        ]
        assert row["dominated_by"] == better


def test_what_was_calibrated_on(quantized: Workplace, shown: dict[str, Any]) -> None:
    found = {row["name"]: row["quantization"] for row in shown["candidates"] if row["quantization"]}
    rows = [json.loads(line) for line in (artifact(quantized, shown, "calibration:gptq-4bit-g32") / "rows.jsonl").read_text().splitlines()]
    tokens = sum(map(len, rows))
    assert len(rows) == 32
    assert found["gptq-4bit-g32"]["calibrated_on"] == f"32 training rows ({tokens} tokens, 2 different answers)"
    assert found["int8"]["calibrated_on"] is found["qlora"]["calibrated_on"] is None


def test_selection_sees_validation_only(quantized: Workplace, shown: dict[str, Any]) -> None:
    selection = shown["selection"]
    assert [row["name"] for row in selection["candidates"]] == ["tuned", *VARIANTS]
    for row in selection["candidates"]:
        scores = [score for score, _ in answers(quantized, shown, row["name"], "validation").values()]
        assert len(scores) == row["n"] == 14 and row["score"] == pytest.approx(sum(scores) / 14)
        assert row["beyond"] == []
    best = min(selection["candidates"], key=lambda row: (-row["score"], row["size_mb"]))
    assert selection["picked"] == best["name"]
    assert [row["name"] for row in shown["candidates"] if row["selected"]] == [best["name"]]
    stage = {one.name: one for one in plan(quantized.load()).stages}["select"]
    assert {one.name for one in stage.inputs if one.kind == "evaluate"} == {f"evaluate:{name}:validation" for name in ("tuned", *VARIANTS)}


def test_text_and_picture(quantized: Workplace, shown: dict[str, Any]) -> None:
    said = quantized("show", shown["run"]["id"])
    text = " ".join(said.out.split())
    assert f"selected on the validation split within size <= 5: {shown['selection']['picked']}" in text
    assert "calibrated on 32 training rows" in text and "Pareto" in text and "quantised" in text
    assert "runs on Linear8bitLt" in text
    for line in said.out.splitlines():
        assert len(line) <= 160
    picture = Path(shown["run"]["folder"]) / "pareto.svg"
    assert all(name in picture.read_text() for name in ("<svg", "hollow"))
    assert quantized("show", shown["run"]["id"], "--html", "page.html").code == 0
    page = (quantized.folder / "page.html").read_text()
    assert "<svg" in page and page.rstrip().endswith("</html>")


def test_the_journal_has_the_measurements(shown: dict[str, Any]) -> None:
    records = [json.loads(line) for line in (Path(shown["run"]["folder"]) / "tracking.jsonl").read_text().splitlines()]
    text = "\n".join(map(json.dumps, records))
    assert "pareto.svg" in text
    starts = {record["name"]: record["run"] for record in records if record["kind"] == "start"}
    runs = {name: run for name, run in starts.items() if name.startswith("candidate:")}
    assert set(runs) == {f"candidate:{name}" for name in ("base", "tuned", *VARIANTS)}
    for name in VARIANTS:
        metrics: dict[str, float] = {}
        for record in records:
            if record["kind"] == "metrics" and record["run"] == runs[f"candidate:{name}"]:
                metrics |= record["values"]
        (row,) = [one for one in shown["candidates"] if one["name"] == name]
        assert metrics["task/score"] == pytest.approx(row["score"])
        assert metrics["size_bytes"] == row["size_bytes"]
        assert metrics["measured/peak_memory_bytes"] == row["peak_memory_bytes"]
        assert metrics["measured/decode_ratio"] == pytest.approx(row["measured_beside_parent"]["speed"]["decode_ratio"])
        assert metrics["measured/kl_mean"] == pytest.approx(row["measured_beside_parent"]["fidelity"]["kl_mean"])


def test_the_run_prints_one_json_document(quantized: Workplace) -> None:
    """GPTQModel greets on standard output when it is imported."""
    assert json.loads((quantized.folder / "stdout.json").read_text())["run"]["status"] == "finished"


# Evidence ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(quantized: Workplace, tmp_path: Path) -> Store:
    """A store of its own, to take artifacts away from."""
    shutil.copytree(quantized.state / "store", tmp_path / "store", copy_function=shutil.copyfile)
    return Store(tmp_path)


def found(store: Store, place: Workplace, stage: str) -> Artifact:
    (one,) = [one for one in plan(place.load()).stages if one.name == stage]
    there = store.find(one.name, one.key)
    assert there is not None
    return there


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("evaluate:int8:task", "its score was never measured"),
        ("evaluate:int8:validation", "its score on the validation split was never measured"),
        ("footprint:int8", "its load time and memory was never measured"),
        ("compare:int8", "the comparison with its parent was never measured"),
    ],
)
def test_a_copy_without_a_measurement_cannot_leave(copy: Store, quantized: Workplace, stage: str, words: str) -> None:
    weights, data = found(copy, quantized, "quantize:int8"), found(copy, quantized, "data")
    evidence.require(copy, weights, data)
    shutil.rmtree(found(copy, quantized, stage).path)
    with pytest.raises(StoreError) as caught:
        evidence.require(copy, weights, data)
    assert str(caught.value).startswith(f"{weights.name}: cannot be exported: {words} ({stage})")
    evidence.require(copy, found(copy, quantized, "quantize:qlora"), data)


def test_a_copy_measured_on_other_data_cannot_leave(copy: Store, quantized: Workplace) -> None:
    weights, data = found(copy, quantized, "quantize:int8"), found(copy, quantized, "data")
    other = Artifact(data.path.with_name("data-" + "0" * 16), "data", "0" * 16, {}, 0.0)
    with pytest.raises(StoreError) as caught:
        evidence.require(copy, weights, other)
    assert caught.value.what.count(f"was measured on other data ({data.name}, not {other.name})") == 4


# What a change makes again ----------------------------------------------------------------------------------------------


def moved(place: Workplace, *overrides: str) -> set[str]:
    before, after = ({one.name: one.key for one in plan(place.load(*changes)).stages} for changes in ((), overrides))
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def of(variant: str) -> set[str]:
    stages = ("calibration:{}", "quantize:{}", "evaluate:{}:task", "evaluate:{}:validation", "footprint:{}", "compare:{}")
    return {stage.format(variant) for stage in stages}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("select.at_most.size_mb=0.2", {"select"}),
        ("quantize.2.compute_dtype=float32", of("qlora") | {"select"}),
        ("quantize.1.damping=0.1", of("gptq-4bit-g32") | {"select"}),
        ("quantize.1.calibration.rows=16", of("gptq-4bit-g32") | {"select"}),
        ("quantize.1.name=small", of("gptq-4bit-g32") | of("small") | {"select"}),
    ],
)
def test_a_key_moves_its_own_variant(quantized: Workplace, override: str, stages: set[str]) -> None:
    assert moved(quantized, override) == stages


def test_another_merge_leaves_what_keeps_the_adapter(quantized: Workplace) -> None:
    changed = moved(quantized, "merge.check_tokens=5")
    assert {"merge", "quantize:int8", "quantize:gptq-4bit-g32"} <= changed
    assert "quantize:qlora" not in changed and "train" not in changed


def test_the_same_again_and_another_selection(quantized: Workplace) -> None:
    again = quantized("run", "desk.yaml", "--json")
    assert again.code == 0 and "started" not in again.err
    strict = quantized("run", "desk.yaml", "--set", "select.at_most={size_mb: 0.001, slowdown: 1.0e-6}")
    assert strict.code == 0
    assert [line for line in strict.err.splitlines() if line.endswith("started")] == ["select: started"]
    text = " ".join(strict.out.split())
    assert "selected on the validation split: none, no candidate is within size <= 0.001, slowdown <= 1e-06" in text
    assert "int8: size 0." in text
    shown = quantized("show", "--json").json
    assert shown["selection"]["picked"] is None and not any(row["selected"] for row in shown["candidates"])


def test_limits_choose() -> None:
    rows = [
        {"name": "tuned", "score": 0.9, "size_mb": 4.0, "memory_mb": 50.0, "slowdown": 1.0},
        {"name": "small", "score": 0.8, "size_mb": 1.0, "memory_mb": 40.0, "slowdown": 2.0},
        {"name": "smaller", "score": 0.8, "size_mb": 0.5, "memory_mb": 45.0, "slowdown": 1.5},
    ]

    def picked(**limits: float) -> str | None:
        return pick([{**row, "beyond": beyond(row, Bounds(**limits))} for row in rows])

    assert picked() == "tuned"
    assert picked(size_mb=4.0) == "tuned", "a limit may be reached"
    assert picked(size_mb=3.9) == "smaller", "of equals the smallest"
    assert picked(memory_mb=44) == "small"
    assert picked(size_mb=3.9, slowdown=1.2) is None
    assert beyond(rows[1], Bounds(size_mb=0.5, memory_mb=1, slowdown=3)) == ["size_mb", "memory_mb"]


# Refused before time is spent -------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Workplace:
    place = furnish(tmp_path / "desk", RECIPE, TRAIN)
    (place.folder / "model").symlink_to(tiny_model)
    return place


def refused_before_training(place: Workplace, section: str) -> Said:
    """What `run` says to the recipe with a `quantize` of its own; the preview says the same."""
    place.write("desk.yaml", RECIPE + TRAIN + section)
    said = place("run", "desk.yaml")
    assert said.code == 2, said.err
    assert "train: started" not in said.err and "Traceback" not in said.err
    return said


def line_of(place: Workplace, word: str) -> int:
    return next(number for number, line in enumerate((place.folder / "desk.yaml").read_text().splitlines(), 1) if word in line)


@pytest.mark.parametrize(
    ("variant", "at", "words"),
    [
        ("{method: gptq, group_size: 48}", "group_size", "group_size 48 does not divide the input widths q_proj 64"),
        ("{method: gptq, group_size: 128}", "group_size", "group_size 128 does not divide the input widths q_proj 64"),
        ("{method: compressed_tensors, group_size: 48}", "group_size", "group_size 48 does not divide the input widths q_proj 64"),
    ],
)
def test_a_group_size_that_does_not_divide(desk: Workplace, variant: str, at: str, words: str) -> None:
    section = f"quantize:\n  - {{method: bitsandbytes}}\n  - {variant}\n"
    said = refused_before_training(desk, section)
    line = line_of(desk, variant)
    place = f"desk.yaml:{line}:{(desk.folder / 'desk.yaml').read_text().splitlines()[line - 1].index(at) + 1 + len(at) + 2}"
    assert f"{place}: {words}" in said.err
    previewed = desk("check", "desk.yaml", "--preview")
    assert previewed.code == 2 and f"{place}: {words}" in previewed.err


def test_memory_that_is_not_there(desk: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.models.machine.available_memory", lambda: 100 << 20)
    said = refused_before_training(desk, "quantize:\n  - {method: bitsandbytes}\n")
    assert f"desk.yaml:{line_of(desk, '- {method')}:" in said.err and "0.1 GiB are free" in said.err
    assert "0.1 GiB are free" in desk("check", "desk.yaml", "--preview").err


def test_calibration_that_overlaps(desk: Workplace) -> None:
    prompts = [f"{row['text']}\nAnswer: " for row in questions(80)]
    desk.rows("general.jsonl", [{"text": text} for text in prompts])
    section = "quantize:\n  - {method: gptq, group_size: 32, calibration: {rows: 160, general: general.jsonl, general_share: 0.5}}\n"
    said = refused_before_training(desk, section)
    assert "40 calibration texts hold prompts of held-out examples (the first: " in said.err
    assert f"desk.yaml:{line_of(desk, 'method: gptq')}:" in said.err


def test_calibration_that_is_too_small(desk: Workplace) -> None:
    said = refused_before_training(desk, "quantize:\n  - {method: gptq, group_size: 32, calibration: {rows: 4, max_length: 8}}\n")
    assert "the calibration texts have 32 tokens, and a layer of the model has 128 inputs" in said.err


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("quantize:\n  - {method: bitsandbytes}\n  - {method: bitsandbytes, bits: 4}\n", "two candidates would be called `nf4`"),
        ("quantize:\n  - {method: bitsandbytes, name: tuned}\n", "two candidates would be called `tuned`"),
        (
            "quantize:\n  - {method: gptq, calibration: {general: nowhere.txt}}\n",
            "no such file",
        ),
    ],
)
def test_recipes_that_make_no_sense(desk: Workplace, section: str, words: str) -> None:
    said = refused_before_training(desk, section)
    assert words in said.err and "desk.yaml:" in said.err
    assert not (desk.state / "store").exists()


@pytest.mark.parametrize("train", ["", "train: {method: full, max_steps: 1}\n"], ids=["none", "full"])
def test_keep_adapter_without_an_adapter(desk: Workplace, train: str) -> None:
    desk.write("desk.yaml", RECIPE + train + "quantize:\n  - {method: bitsandbytes, keep_adapter: true}\n")
    said = desk("run", "desk.yaml")
    assert said.code == 2 and "`keep_adapter` needs an adapter" in said.err


def test_a_missing_shard(desk: Workplace, tiny_model: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, desk.folder / "cut"))
    placed = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    desk.write("desk.yaml", (RECIPE + TRAIN + QUANTIZE).replace("source: model,", "source: cut,"))
    for command in (("run",), ("check", "--preview")):
        said = desk(*command[:1], "desk.yaml", *command[1:])
        assert said.code == 2 and "model-00002-of-00002.safetensors: is missing" in said.err
        assert "train: started" not in said.err
