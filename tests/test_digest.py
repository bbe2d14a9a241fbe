"""Digests: equal for what is the same, different for everything else."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.digest import digest, file_digest, path_digest, tree_files

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?", fullmatch=True)


def _turned(value: Any) -> Any:
    """The same value with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    assert digest(value) == digest(_turned(value))
    assert digest(value) == digest(json.loads(json.dumps(value)))


@given(VALUES, VALUES)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    # JSON text is the measure: 1, 1.0 and true are three values, as they are in a recipe.
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


@given(st.lists(st.integers(), min_size=2, unique=True))
def test_the_order_of_a_list_matters(items: list[int]) -> None:
    assert digest(items) != digest([*items[1:], items[0]])


def test_what_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"loss": math.nan})


def test_it_is_plain_sha256_of_compact_json() -> None:
    assert digest({"b": 1, "ä": [None]}) == hashlib.sha256('{"b":1,"ä":[null]}'.encode()).hexdigest()


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@given(st.dictionaries(NAMES, st.binary(max_size=20), min_size=1, max_size=4))
def test_a_folder_is_its_names_and_bytes(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    files = {name: content for name, content in files.items() if not any(other.startswith(f"{name}/") for other in files)}
    folder = _write(tmp_path_factory.mktemp("one"), files)
    same = _write(tmp_path_factory.mktemp("two"), dict(reversed(files.items())))
    assert path_digest(folder) == path_digest(same)
    assert tree_files(folder) == {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}

    name = next(iter(files))
    (same / name).write_bytes(files[name] + b"x")
    assert path_digest(folder) != path_digest(same), "a byte more"
    (same / name).write_bytes(files[name])
    assert path_digest(folder) == path_digest(same)
    (same / name).rename(same / "renamed-to-something-new")
    assert path_digest(folder) != path_digest(same), "another name"


def test_a_file_is_its_bytes_whatever_its_name(tmp_path: Path) -> None:
    _write(tmp_path, {"a": b"1", "b": b"1"})
    assert path_digest(tmp_path / "a") == path_digest(tmp_path / "b") == file_digest(tmp_path / "a") == hashlib.sha256(b"1").hexdigest()
