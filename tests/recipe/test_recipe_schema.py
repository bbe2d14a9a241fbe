"""The schema as editors and messages see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from tests.recipe.recipes import FULL
from workbench.recipe.schema import LocalPath, json_schema
from workbench.recipe.shape import places
from workbench.recipe.wording import PATTERNS, example, wanted

ROOT = Path(__file__).parents[2]
PLACES = dict(places())


@pytest.mark.parametrize("path", PLACES)
def test_every_key_is_described(path: str) -> None:
    field = PLACES[path].field
    assert field is not None and field.description and len(field.description) >= 8
    assert re.search(r"([^.]|\.\.\.)$", field.description), "no full stop: it is a phrase"


def test_every_section_of_the_full_recipe_is_every_section_of_the_schema() -> None:
    sections = {path.replace("[]", ".0") for path, shape in PLACES.items() if shape.sections}
    for number, method in enumerate(("gptq", "bitsandbytes", "compressed_tensors")):
        sections = {path.replace(f"[{method}]", f".{number}") for path in sections}
    for path in sections - {"evaluate.guards.0.task"}:  # the recipe's own task stands for it
        at: Any = FULL
        for step in path.split("."):
            at = at[int(step)] if isinstance(at, list) else at[step]
        assert isinstance(at, dict)


@pytest.mark.parametrize("path", PLACES)
def test_every_key_can_be_worded_and_its_example_is_valid(path: str) -> None:
    shape = PLACES[path]
    assert wanted(shape)
    field = shape.field
    assert field is not None
    TypeAdapter(Annotated[field.annotation, LocalPath(), *field.metadata]).validate_python(example(shape), strict=True)


def test_every_pattern_has_words() -> None:
    patterns = {shape.pattern for shape in PLACES.values() if shape.pattern}
    assert patterns == set(PATTERNS)


def test_json_schema_is_valid_and_describes_every_key() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        assert all("description" in key for key in section["properties"].values()), section["title"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_fit_the_json_schema(path: Path) -> None:
    Draft202012Validator(json_schema()).validate(YAML(typ="safe", pure=True).load(path))


def test_json_schema_takes_and_refuses_as_the_loader_does() -> None:
    validator = Draft202012Validator(json_schema())
    assert validator.is_valid(FULL)
    assert not validator.is_valid({**FULL, "rank": 3})
    assert not validator.is_valid({**FULL, "train": {"rank": "3"}})
