"""Whatever is in the file, the answer is a recipe or a list of problems in plain words."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.recipe.recipes import FULL, SMALL, recipes, try_load, write
from workbench.errors import RecipeError
from workbench.recipe.emit import flow
from workbench.recipe.load import Loaded
from workbench.recipe.resolved import dump
from workbench.recipe.shape import places

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
#: Phrases of pydantic, typing and ruamel, none of which may reach a user.
JARGON = (
    "Input should", "Extra inputs", "Field required", "pydantic", "discriminator", "Value error", "input_type", "valid dictionary",
    "valid integer", "valid string", "constrained", "Literal", "NoneType", "FieldInfo", "<object", "unicode string", "block mapping",
    "Traceback", "object at 0x", "https://errors",
)  # fmt: skip
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    3,
    0.5,
    -0.5,
    1e300,
    "",
    "x",
    "0",
    "16",
    "yes",
    [],
    [None],
    [0],
    ["a"],
    [{}],
    [[]],
    {},
    {"a": 1},
]


def check(text: str | bytes, *overrides: str) -> None:
    with TemporaryDirectory() as folder:
        result = try_load(write(Path(folder), text), *overrides)
        if isinstance(result, Loaded):
            assert isinstance(try_load(write(Path(folder), dump(result), "again.yaml")), Loaded)
            return
        assert result.problems
        for problem in result.problems:
            assert problem.what and problem.where and problem.fix
            assert "\n" not in problem.what + problem.where + problem.fix
            assert (problem.what + problem.where + problem.fix).isprintable()
        said = str(result).replace(folder, "")
        assert not [phrase for phrase in JARGON if phrase in said], said


@given(st.binary(max_size=200))
@FUZZ
def test_any_bytes(raw: bytes) -> None:
    check(raw)
    check(SMALL.encode() + raw)


@given(st.text(max_size=200))
@example("*\U0001342f")
@FUZZ
def test_any_text(text: str) -> None:
    check(text.encode("utf-8", "surrogatepass"))
    check(f"{SMALL}train: {text}".encode("utf-8", "surrogatepass"))


PIECES = [
    ":", ": ", "- ", "\n", "\n  ", "\n\t", "{", "}", "[", "]", ",", "'", '"', "#", "&a ", "*a", "!!str ", "!", "|", ">", "%YAML 1.2", "---",
    "...", "<<: ", "?", "name", "train", "rank", "model", "source", "1e-3", "0x1f", "null", "~", "on", "\\", "\\x", "\\ud800",
    "\\UFFFFFFFF", "@", "`", "\u2028", "\x85", "\r", "%", "!<", "%TAG ! x",
]  # fmt: skip
YAMLISH = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(YAMLISH, st.integers(0, len(SMALL)))
@FUZZ
def test_text_that_looks_like_yaml(text: str, at: int) -> None:
    check(text)
    check(SMALL[:at] + text + SMALL[at:])


@given(recipes(), st.data())
@FUZZ
def test_recipes_with_something_else_in_one_place(recipe: dict[str, Any], data: st.DataObject) -> None:
    where: Any = recipe
    while True:
        step = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[step], (dict, list)) or not where[step] or data.draw(st.booleans()):
            break
        where = where[step]
    where[step] = data.draw(st.sampled_from(ODD))
    check(flow(recipe))


@given(
    st.text(max_size=60)
    | st.sampled_from([path for path, _ in places()]).flatmap(lambda path: st.text(max_size=20).map(lambda value: f"{path}={value}"))
)
@FUZZ
def test_any_override(override: str) -> None:
    check(SMALL, override)


@pytest.mark.parametrize("path", [path for path, _ in places() if "[" not in path])
def test_every_odd_value_in_every_place(path: str) -> None:
    """Every kind of error that the schema can raise, at every key."""
    for odd in ODD:
        recipe = copy.deepcopy(FULL)
        at: Any = recipe
        *parents, key = path.split(".")
        for step in parents:
            at = at.setdefault(step, {})
        at[key] = odd
        check(flow(recipe))


def test_an_error_reads_well(tmp_path: Path) -> None:
    error = try_load(write(tmp_path, SMALL + "trian: {}\n"))
    assert isinstance(error, RecipeError)
    assert str(error) == f"{tmp_path}/recipe.yaml:8:1: unknown key `trian`\n  fix: did you mean `train`?"
