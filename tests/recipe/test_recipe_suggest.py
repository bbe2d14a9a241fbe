"""Did you mean ...?"""

from __future__ import annotations

import copy
import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recipe.recipes import FULL, problems, write
from workbench.recipe.suggest import near


def _sections(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = [
        (key, item) for key, item in (value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(item, (dict, list))
    ]
    below = [place for key, item in inner for place in _sections(item, (*path, key))]
    return [path, *below] if isinstance(value, dict) else below


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[dict[str, Any], str, str]:
    """A recipe with one key misspelt by one edit, the key, and what became of it."""
    recipe = copy.deepcopy(FULL)
    section: Any = recipe
    for step in draw(st.sampled_from(_sections(FULL))):
        section = section[step]
    key = draw(st.sampled_from(sorted(section)))
    at = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from(string.ascii_lowercase + "_"))
    wrong = draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[:at] + letter + key[at:],
                key[:at] + letter + key[at + 1 :],
                key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
            ]
        )
    )
    return {"recipe": recipe, "section": section}, key, wrong


@given(misspelt())
@settings(max_examples=300, deadline=None)
def test_a_key_with_one_edit_is_recognised(case: tuple[dict[str, Any], str, str]) -> None:
    holder, key, wrong = case
    section = holder["section"]
    if wrong in section or not wrong:
        return
    section[wrong] = section.pop(key)
    with TemporaryDirectory() as folder:
        found = problems(write(Path(folder), holder["recipe"]))
    [fix] = [fix for _, what, fix in found if what.startswith(f"unknown key `{wrong}`")] or ["not refused"]
    assert f"`{key}`" in fix
    # One mistake, one message: the key is not called missing as well.
    assert not any("is missing" in what for _, what, _ in found)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learningRate", "learning_rate"), ("learning-rate", "learning_rate"), ("LEARNING_RATE", "learning_rate"), ("lora_rank", "rank"),
        ("num_train_epochs", "epochs"), ("max_seq_length", "max_length"), ("per_device_batch_size", "batch_size"), ("rnak", "rank"),
    ],
)  # fmt: skip
def test_names_of_other_tools_and_other_styles(word: str, meant: str) -> None:
    assert near(word, ["learning_rate", "rank", "epochs", "max_length", "batch_size", "method", "dropout"])[0] == meant


def test_nothing_is_suggested_for_something_else() -> None:
    assert near("zebra", ["rank", "alpha", "epochs"]) == []
    assert near("", ["rank"]) == []
