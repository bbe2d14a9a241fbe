"""`--set key.path=value`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.recipes import FULL, SMALL, problems, write
from workbench.recipe.load import load


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["train.learning_rate=2e-4"], "train.learning_rate", 2e-4),
        (["train.rank=8", "train.rank=9"], "train.rank", 9),
        (["train={rank: 3, dora: true}"], "train.rank", 3),
        (["train={rank: 3}", "train.alpha=5"], "train.rank", 3),
        (["train.early_stopping.patience=7"], "train.early_stopping.patience", 7),
        (["train=null", "quantize=[]"], "train", None),
        (["name=x"], "name", "x"),
        (['task.labels=["a","b"]'], "task.labels", ["a", "b"]),
        (["task.labels.2=maybe"], "task.labels", ["0", "1", "maybe"]),
        (["task.labels.0='7'"], "task.labels", ["7", "1"]),
        (["quantize.0.bits=8"], "quantize.0.bits", 8),
        (["quantize.3.method=gptq", "quantize.3.bits=3"], "quantize.3.bits", 3),
        (["train.target_modules.0=k_proj"], "train.target_modules", ["k_proj"]),
        (["train.target_modules=all-linear"], "train.target_modules", "all-linear"),
        # A text is taken as it stands where nothing else can be meant.
        (["task.prompt={input}"], "task.prompt", "{input}"),
        (["task.prompt=Headline: {input}\nSarcastic: "], "task.prompt", "Headline: {input}\nSarcastic: "),
        (["task.prompt=- {p} # not a comment"], "task.prompt", "- {p} # not a comment"),
        (["task.prompt=a # b"], "task.prompt", "a # b"),
        ([r'task.prompt="a\nb"'], "task.prompt", "a\nb"),
        (["task.prompt=@x=y"], "task.prompt", "@x=y"),
        (["model.license=null"], "model.license", None),
        (["data.source=hf://datasets/a/b@main/c.jsonl"], "data.source", "hf://datasets/a/b@main/c.jsonl"),
        (["hub.endpoint=http://localhost:1/"], "hub.endpoint", "http://localhost:1/"),
    ],
)
def test_values_are_typed_like_the_file(tmp_path: Path, overrides: list[str], path: str, value: object) -> None:
    at: object = load(write(tmp_path, FULL), overrides).recipe
    for step in path.split("."):
        at = at[int(step)] if isinstance(at, list) else getattr(at, step)
    assert at == value and type(at) is type(value)


def test_sections_and_lists_are_made_on_the_way(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SMALL), ["quantize.0.method=gptq", "train.rank=4"])
    assert loaded.recipe.quantize[0].bits == 4
    assert loaded.origins["quantize", 0, "method"].where == "--set quantize.0.method=gptq"
    assert loaded.origins["quantize", 0, "bits"].kind == "default"


def test_an_override_heals_the_value_it_replaces(tmp_path: Path) -> None:
    assert load(write(tmp_path, SMALL + "train:\n"), ["train.rank=4"])
    assert load(write(tmp_path, SMALL + "train: {rank: no}\n"), ["train.rank=4"])


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("train.rnak=4", "unknown key `rnak` in `train`", "did you mean `rank`?"),
        ("trian.rank=4", "unknown key `trian`", "did you mean `train`?"),
        ("rank=4", "unknown key `rank`", "`rank` belongs to `train`"),
        ("train.rank", "not of the form key.path=value", "--set train.rank=8"),
        ("=4", "not of the form key.path=value", ""),
        ("train..rank=4", "not of the form key.path=value", ""),
        ("train.rank=", "`train.rank` has no value", "--set train.rank=16"),
        ("train.rank=four", "must be a whole number above 0, but is the text", "--set train.rank=16"),
        ("train.rank=16.0", "the number 16.0", "write `--set train.rank=16`"),
        ("name.x=1", "`name` holds a value, not a section", "--set name=..."),
        ("quantize.bits=8", "`quantize` is a list; `bits` is not the number of an element", "--set quantize.0"),
        ("quantize.5.bits=8", "`quantize` has 3 elements, so there is no number 5", "quantize.3 adds one"),
        ("quantize.99999999999999999999=8", "`quantize` has 3 elements", ""),
        ("quantize.3.bits=8", "`quantize.3.method` is missing", ""),
        ("task.labels=[0, 1]", "`task.labels.0` must be a text", ""),
        ("model.license=2", "`model.license` must be a text", """quote it: --set 'model.license="2"'"""),
        ("train.rank=[1", "a list that began with `[` is not closed", ""),
        ("train=rank: 4", "written in brackets", ""),
        ("train.rank=!!int 4", "YAML tags", ""),
        ("train.rank=*a", "nothing above is named `&a`", ""),
        ("train.rank=1\n--- 2", "a second document begins here", ""),
        ("task.metric=regex", "metric `regex` needs `pattern`", "add `pattern`"),
    ],
)
def test_refusals_point_to_the_override(tmp_path: Path, override: str, what: str, fix: str) -> None:
    found = problems(write(tmp_path, FULL), override)
    assert any(what in found_what and fix in found_fix for _, found_what, found_fix in found), found
    if override != "task.metric=regex":  # there, the file's `labels` no longer fit either
        assert {where for where, _, _ in found} == {f"--set {override}".replace("\n", r"\n")}
