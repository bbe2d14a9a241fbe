from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny import CHAT_TEMPLATE, TEXT, make_model
from workbench.errors import SourceError
from workbench.models.facts import read_facts
from workbench.models.load import load_model, load_tokenizer
from workbench.models.prepare import copy_tokenizer, from_folder, from_gguf, recast, set_chat_template


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Folders ------------------------------------------------------------------------------------------------------------


def furnish(folder: Path) -> set[str]:
    """Fill a folder; returns the files that are wanted."""
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "code/modeling.py", "model.safetensors.index.json"}
    unwanted = {
        "pytorch_model.bin",
        "model.pt",
        "original/consolidated.00.pth",
        "optimizer.pkl",
        "last.ckpt",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/model.onnx",
        "model.gguf",
        ".gitattributes",
        ".git/config.json",
        "code/.cache/x.json",
    }
    for name in wanted | unwanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return wanted


@pytest.mark.parametrize("link", [True, False], ids=["links", "copies"])
def test_what_is_taken_over(tmp_path: Path, link: bool) -> None:
    source, out = tmp_path / ".cache" / "model", tmp_path / "out"  # a hidden folder above does not hide the files
    wanted = furnish(source)
    from_folder(source, out, link=link)
    assert names(out) == wanted
    for name in wanted:
        assert (out / name).read_text() == name
        assert (source / name).samefile(out / name) == link


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """A hub cache's snapshots are links into a folder of blobs."""
    blob, source = tmp_path / "blobs" / "1f0c", tmp_path / "snapshot"
    blob.parent.mkdir()
    blob.write_text("weights")
    source.mkdir()
    (source / "model.safetensors").symlink_to("../blobs/1f0c")
    for link in (True, False):
        out = tmp_path / f"out-{link}"
        from_folder(source, out, link=link)
        file = out / "model.safetensors"
        assert file.read_text() == "weights" and not file.is_symlink() and file.samefile(blob) == link


def test_another_file_system_is_copied_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    wanted = furnish(tmp_path / "model")
    from_folder(tmp_path / "model", tmp_path / "out", link=True)
    assert names(tmp_path / "out") == wanted and not (tmp_path / "model/config.json").samefile(tmp_path / "out/config.json")


def test_the_tokenizer_alone(tiny_model: Path, tmp_path: Path) -> None:
    copy_tokenizer(tiny_model, tmp_path)
    assert names(tmp_path) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all((tmp_path / name).read_bytes() == (tiny_model / name).read_bytes() for name in names(tmp_path))


# Chat templates -----------------------------------------------------------------------------------------------------


def test_a_new_chat_template_leaves_the_linked_cache_alone(tiny_model: Path, tmp_path: Path) -> None:
    cache, out, template = tmp_path / "cache", tmp_path / "out", tmp_path / "mine.jinja"
    from_folder(tiny_model, cache, link=False)
    config = {**json.loads((cache / "tokenizer_config.json").read_text()), "chat_template": "in the config"}
    (cache / "tokenizer_config.json").write_text(json.dumps(config))
    (cache / "additional_chat_templates").mkdir()
    (cache / "additional_chat_templates" / "tool_use.jinja").write_text("for tools")
    before = {name: (cache / name).read_bytes() for name in names(cache)}
    from_folder(cache, out, link=True)
    template.write_text("{{ 'ä' }}", encoding="utf-8")
    set_chat_template(out, template)
    assert {name: (cache / name).read_bytes() for name in names(cache)} == before
    assert load_tokenizer(out).chat_template == "{{ 'ä' }}"
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    assert (cache / "model.safetensors").samefile(out / "model.safetensors")


def test_a_folder_without_any_configuration_gets_one(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("t")
    set_chat_template(tmp_path, tmp_path / "t.jinja")
    assert (tmp_path / "chat_template.jinja").read_text() == "t"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "not UTF-8"])
def test_templates_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(SourceError, match="chat template cannot be read") as caught:
        set_chat_template(tmp_path, tmp_path / "t.jinja")
    assert caught.value.where == str(tmp_path / "t.jinja")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_tokenizer_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.jinja").write_text("t")
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(SourceError, match="is not a JSON object"):
        set_chat_template(tmp_path, tmp_path / "t.jinja")


# GGUF ---------------------------------------------------------------------------------------------------------------


def write_gguf(folder: Path, file: Path) -> dict[str, np.ndarray]:
    """The tiny Llama as llama.cpp would write it, in 16 bits; returns its weights under their names in transformers."""
    facts, tokenizer = read_facts(folder), json.loads((folder / "tokenizer.json").read_text())
    tensors = {name: tensor.to(torch.float16).numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("../somewhere/else")
    writer.add_context_length(facts.context)
    writer.add_embedding_length(facts.hidden)
    writer.add_block_count(facts.layers)
    writer.add_feed_forward_length(facts.intermediate)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(facts.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(facts.vocab)
    vocabulary = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    tokens = [vocabulary.get(number, f"[unused{number}]") for number in range(facts.vocab)]
    special = {entry["id"] for entry in tokenizer["added_tokens"]}
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if number in special or number not in vocabulary else normal for number in range(facts.vocab)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, facts.layers)
    for name, tensor in tensors.items():
        stored = tensor
        for part, heads in (("q_proj", facts.heads), ("k_proj", facts.kv_heads)):
            if part in name:  # llama.cpp rotates neighbouring pairs, transformers the two halves of a head
                stored = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(str(mapping.get_name(name, try_suffixes=(".weight",))), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_a_folder(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "tiny.gguf", tmp_path / "out"
    tensors = write_gguf(tiny_model, file)
    from_gguf(file, out, "float32")
    assert capfd.readouterr() == ("", "")
    assert names(out) >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    stored = load_file(out / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], torch.from_numpy(tensor).float()) for name, tensor in tensors.items())
    facts, before = read_facts(out), read_facts(tiny_model)
    assert facts == before
    assert str(tmp_path) not in (out / "config.json").read_text() and "somewhere" not in (out / "config.json").read_text()
    one, other = load_tokenizer(out), load_tokenizer(tiny_model)
    assert (one.eos_token, one.chat_template) == (other.eos_token, CHAT_TEMPLATE)
    for text in [*TEXT, "<|im_start|>user\nä 東京<|im_end|>\n"]:
        assert one(text)["input_ids"] == other(text)["input_ids"]
    ids = torch.tensor([other(TEXT[0])["input_ids"]])
    with torch.no_grad():
        logits = [load_model(folder, dtype="float32").eval()(ids).logits for folder in (out, tiny_model)]
    assert torch.allclose(logits[0], logits[1], atol=1e-2)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but long enough to look at"])
def test_files_that_are_no_gguf(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(SourceError, match="GGUF file cannot be read") as caught:
        from_gguf(tmp_path / "x.gguf", tmp_path / "out", "float32")
    assert caught.value.where == str(tmp_path / "x.gguf")


def test_recast_changes_the_precision_and_nothing_else(tmp_path: Path) -> None:
    import torch

    folder = make_model(tmp_path / "model")
    before = load_model(folder, dtype="bfloat16").state_dict()
    recast(folder, "float32")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    after = load_model(folder, dtype="float32").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].float(), after[name]) for name in before)
