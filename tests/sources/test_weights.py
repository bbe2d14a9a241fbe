"""Whole weights pass; everything else is named in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from workbench.errors import SourceError
from workbench.sources.weights import check_weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": np.ones((4, 4), np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(3, np.float16)}, folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        check_weights(path)
    assert caught.value.fix
    return str(caught.value)


def test_whole_model(model: Path) -> None:
    check_weights(model)


def test_one_file_without_an_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    check_weights(tmp_path)


def test_missing_shard(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: is missing" in _refused(model)


def test_index_places_a_tensor_that_is_not_there(model: Path) -> None:
    save_file({"c": np.ones(3, np.float16)}, model / "model-00002-of-00002.safetensors")
    assert "lacks the tensor 'b'" in _refused(model)


@pytest.mark.parametrize("keep", [0, 3, 8, 20, -1])
def test_truncated_shard(model: Path, keep: int) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    assert f"{shard}: is cut short or damaged" in _refused(model)


def test_bytes_too_many(model: Path) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert str(shard) in _refused(model)


@pytest.mark.parametrize(("name", "text"), [("config.json", "{"), ("config.json", "[]"), ("model.safetensors.index.json", "{}")])
def test_bad_json(model: Path, name: str, text: str) -> None:
    (model / name).write_text(text)
    assert f"{model / name}: " in _refused(model)


def test_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert "config.json: is missing" in _refused(model)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin" in _refused(tmp_path)
    assert "runs code when it is loaded" in _refused(tmp_path)


def test_folder_with_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert f"name the file itself: {tmp_path / 'm.gguf'}" in _refused(tmp_path)


def test_neither_folder_nor_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    assert "neither a model folder nor a .gguf file" in _refused(tmp_path / "x.txt")


def _gguf(path: Path) -> bytes:
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["<s>", "hello", "world"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_bool("x.flag", val=True)
    writer.add_tensor("a", np.ones((2, 32), np.float32))
    writer.add_tensor("q", np.zeros((2, 20), np.uint8), raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_gguf_cut_at_any_byte_of_its_header_or_data(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = _gguf(path)
    check_weights(path)
    # The writer pads the end up to the alignment; the last tensor is 2 blocks of 20 bytes in a slot of 64.
    last_needed = len(content) - (64 - 40)
    for keep in range(last_needed):
        path.write_bytes(content[:keep])
        assert f"{path}: is not a whole GGUF file" in _refused(path)
    path.write_bytes(content[:last_needed])
    check_weights(path)


@settings(max_examples=300, deadline=5000)
@given(st.data())
def test_damaged_headers_never_hang_or_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_text("{}")
    for path, content in [
        (folder / "m.gguf", _gguf(folder / "m.gguf")),
        (folder / "model.safetensors", save({"a": np.ones(8, np.float32)})),
    ]:
        damaged = bytearray(content)
        for _ in range(data.draw(st.integers(1, 6))):
            damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged)
        try:
            check_weights(path if path.suffix == ".gguf" else folder)
        except SourceError as error:
            assert "\n" not in error.what


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="is an adapter over 'org/base', not a model"):
        check_weights(tmp_path)
