"""`workbench check`: what can be said before anything is spent, and the preview of what a run would do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.workplace import GUARDS, RECIPE, TRAIN, Said, Workplace, furnish, questions, stand_in_model
from workbench.check import check_static
from workbench.errors import RecipeError
from workbench.preview import CLOSE, OPEN


@pytest.fixture
def desk(tmp_path: Path) -> Workplace:
    place = furnish(tmp_path / "desk", RECIPE, TRAIN, GUARDS)
    stand_in_model(place.folder / "model")
    return place


@pytest.fixture
def real(tmp_path: Path, tiny_model: Path) -> Workplace:
    place = furnish(tmp_path / "real", RECIPE, TRAIN, GUARDS)
    (place.folder / "model").symlink_to(tiny_model)
    return place


def problems(place: Workplace, *overrides: str) -> list[str]:
    try:
        check_static(place.load(*overrides))
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_a_valid_recipe_has_no_problems(desk: Workplace) -> None:
    assert problems(desk) == []
    said = desk("check", "desk.yaml")
    assert (said.code, said.out, said.err) == (0, "desk.yaml: valid\n", "")
    assert desk("check", "desk.yaml", "--json").json == {"recipe": "desk", "valid": True}
    assert not desk.state.exists(), "nothing is spent, nothing is left behind"


@pytest.mark.parametrize(
    "override",
    [
        "model.source=modle",
        "data.source=rows.json",
        "data.held_out.test=gone.jsonl",
        "evaluate.guards.0.source=gone.jsonl",
        "model.chat_template=gone.jinja",
        "launch.config_file=gone.yaml",
    ],
)
def test_a_file_that_is_not_there(desk: Workplace, override: str) -> None:
    (problem,) = problems(desk, override)
    assert problem.startswith(f"--set {override}: no such file: {desk.folder}/{override.partition('=')[2]}")
    assert "\n  fix: correct the path" in problem


def test_every_problem_at_once_each_at_its_line(desk: Workplace) -> None:
    text = desk.load().text.replace("source: model,", "source: modle,").replace("rows.jsonl", "row.jsonl").replace("near.jsonl", "pypi://x")
    desk.write("desk.yaml", text)
    found = problems(desk)
    assert [problem.split(": ")[0].removeprefix(f"{desk.folder}/") for problem in found] == [
        "desk.yaml:2:17", "desk.yaml:4:11", f"desk.yaml:{text[: text.index('pypi://x')].count(chr(10)) + 1}:28"
    ]  # fmt: skip


def test_paths_start_at_the_recipes_folder(desk: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(desk) == [], "wherever the command is given"
    (tmp_path / "here.jsonl").write_text("{}")
    (problem,) = problems(desk, "data.source=here.jsonl")
    assert "paths start at the recipe's own folder" in problem


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.modules_to_save=[lm_head]", "`modules_to_save`"),
        ("train.dora=true", "DoRA"),
        ("train.rank=513", "rank 512"),
    ],
)
def test_adapters_that_nobody_can_serve(desk: Workplace, override: str, says: str) -> None:
    (problem,) = problems(desk, override)
    assert says in problem
    assert "train.serve_adapter: false" in problem
    assert problems(desk, override, "train.serve_adapter=false") == []


@pytest.mark.parametrize("text", ["a: [1, 2", "- just\n- a list\n", "", "\x00\x01"])
def test_an_accelerate_config_that_is_none(desk: Workplace, text: str) -> None:
    desk.write("accelerate.yaml", text)
    (problem,) = problems(desk, "launch.config_file=accelerate.yaml")
    assert problem.startswith("--set launch.config_file=accelerate.yaml: ")
    assert "is no accelerate config" in problem
    assert len(problem.splitlines()) == 2


def test_the_shipped_accelerate_configs_pass(desk: Workplace) -> None:
    for path in sorted((Path(__file__).parents[1] / "recipes" / "accelerate").glob("*.yaml")):
        assert problems(desk, f"launch.config_file={path}") == []


def test_the_resolved_recipe_is_a_recipe(desk: Workplace) -> None:
    said = desk("check", "desk.yaml", "--resolved", "--set", "train.rank=7")
    assert "# --set train.rank" in said.out
    desk.write("resolved.yaml", said.out)
    assert desk("check", "resolved.yaml").code == 0
    assert desk.load(name="resolved.yaml").recipe.train == desk.load("train.rank=7").recipe.train
    document = desk("check", "desk.yaml", "--resolved", "--set", "train.rank=7", "--json").json
    assert document == {"recipe": "desk", "valid": True, "resolved": said.out}


# Preview ----------------------------------------------------------------------------------------------------------------


def preview(place: Workplace, *overrides: str) -> Said:
    return place("check", "desk.yaml", "--preview", "--json", *(word for text in overrides for word in ("--set", text)))


def test_rows_as_the_model_sees_them(real: Workplace) -> None:
    said = preview(real)
    assert said.code == 0, said.err
    found = said.json
    assert len(found["rows"]) == 3
    for row in found["rows"]:
        asked, _, supervised = row.partition(OPEN)
        assert asked.startswith("is the number ")
        assert asked.endswith(" even?\nAnswer: ")
        assert supervised in (f"yes<|im_end|>{CLOSE}", f"no<|im_end|>{CLOSE}")
    sizes = {one["split"]: one["rows"] for one in found["lengths"]}
    assert sizes == {"train": 40, "validation": 14, "test": 20}
    assert found["problems"] == []
    assert found["supervised"] == 2 * 40, "a label of one token and its end"
    assert found["memory_bytes"] > 500e6
    assert found["train_seconds"] > 0
    assert found["evaluate_seconds"] > 0
    text = real("check", "desk.yaml", "--preview").out
    assert f"{OPEN}yes<|im_end|>{CLOSE}" in text
    assert "estimate for this machine" in text


def test_the_lengths_are_those_that_training_counts(real: Workplace) -> None:
    from workbench.data.render import Renderer
    from workbench.models.load import load_tokenizer
    from workbench.stages.data import examples_of

    found = preview(real).json
    (data,) = [path for path in (real.state / "store").iterdir() if path.name.startswith("data-") and (path / "train.jsonl").exists()]
    renderer = Renderer(load_tokenizer(real.folder / "model"), real.load().recipe.task)
    lengths = sorted(len(renderer.row(example, "completion").input_ids) for example in examples_of(data, "train"))
    train = next(one for one in found["lengths"] if one["split"] == "train")
    assert found["tokens"] == sum(lengths)
    assert (train["longest"], train["p50"]) == (lengths[-1], lengths[19])


def test_rows_that_would_be_truncated_are_counted_and_refused(real: Workplace) -> None:
    real.rows("rows.jsonl", [*questions(80), *({**row, "text": row["text"] * 20} for row in questions(6, "long"))])
    said = preview(real)
    assert said.code == 2
    long = sum(one["overlong"] for one in said.json["lengths"] if one["split"] in ("train", "validation"))
    assert long > 0
    assert f"{long} rows are longer than 64 tokens and would be truncated" in said.err
    assert "train.overflow: drop or truncate" in said.err
    assert said.json["problems"] == [said.err.removeprefix("error: ").rstrip("\n")]
    assert preview(real, "train.overflow=drop").code == 0


def test_a_length_beyond_the_models_context(real: Workplace) -> None:
    said = preview(real, "train.max_length=513")
    assert said.code == 2
    assert "train.max_length 513 is beyond the model's context of 512 tokens" in said.err
    assert preview(real, "train.max_length=512").code == 0


def test_a_group_size_that_does_not_divide(real: Workplace) -> None:
    said = preview(real, "quantize=[{method: gptq, group_size: 48}]")
    assert said.code == 2
    assert "group_size 48 does not divide the input widths q_proj 64" in said.err
    assert "choose 32 or 64" in said.err
    for size in (32, 64, -1):
        assert preview(real, f"quantize=[{{method: gptq, group_size: {size}}}]").code == 0


def test_what_the_preview_prepared_the_run_finds(real: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert preview(real).code == 0
    said = real("run", "desk.yaml", "--until", "data")
    assert said.code == 0
    assert said.err.count("there already") == 4
    assert "started" not in said.err


def test_a_metric_that_cannot_score_is_refused_before_training(real: Workplace) -> None:
    said = preview(real, "evaluate.guards.1.task.function=scoring:nothing")
    assert said.code == 2
    assert "'scoring' has no function 'nothing'" in said.err


def test_base_only_has_no_training_to_estimate(real: Workplace) -> None:
    found = preview(real, "train=null").json
    assert (found["tokens"], found["train_seconds"], found["max_length"]) == (0, 0, None)
    assert [one["split"] for one in found["lengths"]] == ["test"]
    assert json.dumps(found)
