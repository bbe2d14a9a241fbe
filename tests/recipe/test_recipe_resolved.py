"""The resolved recipe reproduces the recipe."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from ruamel.yaml import YAML

from tests.recipe.recipes import FULL, SMALL, recipes, write
from workbench.recipe.load import load
from workbench.recipe.resolved import anchored, dump
from workbench.recipe.shape import keys


@given(recipes())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_dump_is_a_recipe_that_loads_to_the_same(typed: dict[str, Any]) -> None:
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        loaded = load(write(Path(first), typed))
        text = dump(loaded)
        again = load(write(Path(second), text, "resolved.yaml"))
        assert again.recipe == anchored(loaded)
        assert anchored(again) == again.recipe
        # Another reader agrees about every value.
        assert YAML(typ="safe", pure=True).load(text) == anchored(loaded).model_dump()
        # Nothing is left to a default, and nothing is lost.
        assert set(again.origins) == set(loaded.origins)
        assert all(origin.kind == "file" for origin in again.origins.values())


def test_every_leaf_has_its_origin_in_an_aligned_comment(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SMALL), ["train.rank=4", "train.learning_rate=1e-3"])
    lines = dump(loaded).splitlines()
    commented = [line for line in lines if not line.endswith(":")]
    assert len(commented) == len(loaded.origins)
    assert len({re.search("  # ", line).start() for line in commented if len(line) < 72}) == 1  # type: ignore[union-attr]
    said = {line.split("#")[0].strip(): line.split("#")[1].strip() for line in commented}
    assert said["name: tiny"] == "recipe.yaml:1"
    assert said["rank: 4"] == "--set train.rank"
    assert said["learning_rate: 0.001"] == "--set train.learning_rate"
    assert said["epochs: 1.0"] == "default"
    # Every key of the schema that this recipe can have is spelt out.
    absent = ("early_stopping", "baseline.", "gate.")
    assert {key for key in keys() if "[" not in key and not any(section in key for section in absent)} <= {
        ".".join(str(step) for step in path) for path in loaded.origins
    }


def test_local_paths_become_absolute_and_nothing_else_does(tmp_path: Path) -> None:
    recipe = {**FULL, "model": {"source": "../model", "chat_template": "/abs/t.jinja"}, "launch": {"config_file": "~/fsdp.yaml"}}
    recipe["data"] = {**FULL["data"], "source": "hf://datasets/a/b@main/c.jsonl"}
    made = anchored(load(write(tmp_path, recipe)))
    assert (made.model.source, made.model.chat_template) == (f"{tmp_path}/../model", "/abs/t.jinja")
    assert made.launch.config_file == str(Path("~/fsdp.yaml").expanduser())
    assert made.data.source == "hf://datasets/a/b@main/c.jsonl"
    assert made.data.held_out.test == f"{tmp_path}/test.jsonl"
    assert made.evaluate.guards[0].source == f"{tmp_path}/ood.jsonl"
    assert made.task.prompt == "{p}" and made.data.columns.prompt == "p"


def test_odd_file_names_and_overrides_do_not_break_the_comments(tmp_path: Path) -> None:
    path = write(tmp_path, FULL, "odd\nname #: \u202e.yaml")
    loaded = load(path, ["task.prompt=line\nnext: [", "name=z"])
    again = load(write(tmp_path, dump(loaded)))
    assert again.recipe.task.prompt == "line\nnext: ["
