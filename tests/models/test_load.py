from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.errors import SourceError
from workbench.models.load import load_model, load_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_json(file: Path, **changes: object) -> None:
    content = {key: value for key, value in {**json.loads(file.read_text()), **changes}.items() if value is not None}
    file.write_text(json.dumps(content))


# Tokenizers ---------------------------------------------------------------------------------------------------------


def test_a_tokenizer_pads_on_the_left(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    assert tokenizer.padding_side == "left" and tokenizer.eos_token == "<|im_end|>"


def test_padding_falls_back_to_the_end(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_padding_token_of_its_own_is_kept(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token="<|im_start|>")
    assert load_tokenizer(folder).pad_token == "<|im_start|>"


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(SourceError, match="no end-of-sequence token") as caught:
        load_tokenizer(folder)
    assert caught.value.where == str(folder) and "eos_token" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", ""),
        ("tokenizer.json", '{"model"'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "Nothing"}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"'),
    ],
)
def test_damaged_tokenizers(folder: Path, file: str, content: str | None) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(SourceError, match="tokenizer cannot be loaded") as caught:
        load_tokenizer(folder)
    assert caught.value.where == str(folder)


# Weights ------------------------------------------------------------------------------------------------------------


def test_weights_are_what_the_file_holds(tiny_model: Path) -> None:
    stored = load_file(tiny_model / "model.safetensors")
    for dtype in ("bfloat16", "float32"):
        own = load_model(tiny_model, dtype=dtype).state_dict()
        assert all(own[name].dtype == getattr(torch, dtype) for name in stored)
        assert all(torch.equal(own[name].to(tensor.dtype), tensor) for name, tensor in stored.items())


def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def cut(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        pytest.param(lambda folder: cut(folder, 0.9), "incomplete metadata", id="cut in the tensors"),
        pytest.param(lambda folder: cut(folder, 0.001), "header", id="cut in the header"),
        pytest.param(lambda folder: cut(folder, 0), "header", id="empty"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 5000), "cannot be loaded", id="zeros"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), "no file named", id="no weights"),
        pytest.param(pickled, "no file named", id="a pickle"),
        pytest.param(rewrite(lambda tensors: tensors.pop(UP)), f"{UP} is missing", id="a tensor is missing"),
        pytest.param(rewrite(lambda tensors: tensors.clear()), r"is missing, and \d+ more", id="no tensor"),
        pytest.param(
            rewrite(lambda tensors: tensors.update({UP: tensors[UP][:5].clone()})),
            f"{UP} has another shape",
            id="a tensor of another shape",
        ),
        pytest.param(lambda folder: edit_json(folder / "config.json", hidden_size=32), "has another shape", id="another model's config"),
        pytest.param(lambda folder: edit_json(folder / "config.json", num_hidden_layers=3), "is missing", id="a layer too many"),
        pytest.param(
            lambda folder: edit_json(folder / "config.json", num_attention_heads="4"), "num_attention_heads", id="a text for a number"
        ),
        pytest.param(lambda folder: edit_json(folder / "config.json", model_type="zzz"), "zzz", id="an unknown model type"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{}"), "model_type", id="an empty config"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), "config.json", id="no config"),
    ],
)
def test_weights_that_cannot_be_trusted(folder: Path, damage: Callable[[Path], object], what: str) -> None:
    damage(folder)
    with pytest.raises(SourceError, match=what) as caught:
        load_model(folder)
    assert caught.value.where == str(folder) and caught.value.fix and "\n" not in caught.value.what


def test_nothing_is_printed(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(tiny_model)
    load_tokenizer(tiny_model)
    assert capfd.readouterr() == ("", "")
