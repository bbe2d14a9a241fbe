"""A secret in a recipe is refused, and never said aloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.recipes import SMALL, problems, try_load, write
from workbench.errors import RecipeError
from workbench.recipe import secrets

# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "sk-" + "a1B2" * 8,
    "sk-" + "proj-" + "Ab_9-" * 8,
    "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "a1" * 18,
    "glpat-" + "a1-b2_c3" * 3,
    "xoxb-" + "123456789012-abcdef",
    "AIza" + "Sy0" * 12,
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "https://user:" + "hunter2@example.com/x",
]
PLACES = {
    "value": "hub: {{token_env: '{}'}}",
    "value of an unknown key": "api_key: '{}'",
    "wrong type": "train: {{rank: '{}'}}",
    "choice": "train: {{method: '{}'}}",
    "key": "'{}': 3",
    "element": "train: {{modules_to_save: ['{}']}}",
    "comment": "# {}",
    "beside a syntax error": "train: [ '{}'",
    "anchor": "train: *{}",
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", PLACES)
def test_in_the_file(tmp_path: Path, place: str, secret: str) -> None:
    error = try_load(write(tmp_path, SMALL + PLACES[place].format(secret)))
    assert isinstance(error, RecipeError)
    assert any(problem.what == secrets.WHAT and "name of an environment variable" in str(problem.fix) for problem in error.problems)
    core = secret.removeprefix("https://user:").removesuffix("@example.com/x")
    assert core not in str(error) and core[:12] not in str(error)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["hub.token_env={}", "model.license={}", "train.rank={}", "train.{}=3", "{}", "train=[{}"])
def test_on_the_command_line(tmp_path: Path, form: str, secret: str) -> None:
    error = try_load(write(tmp_path, SMALL), form.format(secret))
    assert isinstance(error, RecipeError)
    assert any(problem.what == secrets.WHAT for problem in error.problems)
    assert secret not in str(error) and "hunter2" not in str(error)


def test_a_value_in_place_of_a_variables_name_is_not_repeated(tmp_path: Path) -> None:
    [(_, what, fix)] = problems(write(tmp_path, f"{SMALL}hub: {{token_env: correct horse battery}}"))
    assert "correct" not in what + fix


@pytest.mark.parametrize(
    "harmless",
    [
        "task-specific-prompts-and-more-words", "models/hf_small", "sk-learn-baseline", "sha256=4cb34ff4d2718da62368440ffe8dece7ece39a46",
        "hf://org/name@0123456789012345678901234567890123456789/file", "pypi://evals==3.0.1.post1/evals/a.jsonl#sha256=aa", "http://host:8080/a@b",
    ],
)  # fmt: skip
def test_ordinary_texts_are_no_secrets(harmless: str) -> None:
    assert not secrets.find(harmless)
