from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from workbench.errors import SourceError
from workbench.models.facts import ModelFacts, read_facts

GOOD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
REQUIRED = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "max_position_embeddings"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def facts_of(folder: Path, config: object) -> ModelFacts:
    (folder / "config.json").write_text(json.dumps(config))
    return read_facts(folder)


def test_the_model_of_the_quickstart(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, GOOD)
    assert facts == ModelFacts("LlamaForCausalLM", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, True)
    assert facts.parameters == pytest.approx(134_515_008, rel=0.001)
    assert facts.linear_shapes["k_proj"] == (192, 576) and facts.linear_shapes["down_proj"] == (576, 1536)


SIZES = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 8, "vocab_size": 3000}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, num_key_value_heads=2),
        LlamaConfig(**SIZES, num_key_value_heads=8, tie_word_embeddings=True, head_dim=48),
        Qwen2Config(**SIZES, num_key_value_heads=4),
        Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
        Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=64),
        GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=64),
    ],
    ids=lambda config: f"{config.model_type}-{'tied' if config.tie_word_embeddings else 'untied'}",
)
def test_parameters_are_those_of_the_real_model(config: PretrainedConfig, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    facts = read_facts(tmp_path)
    assert facts.parameters == pytest.approx(sum(weight.numel() for weight in model.parameters()), rel=0.01)
    modules = {name.rsplit(".", 1)[-1]: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert facts.linear_shapes == {name: tuple(module.weight.shape) for name, module in modules.items() if name != "lm_head"}


def test_what_may_be_left_out(tmp_path: Path) -> None:
    small = {key: value for key, value in GOOD.items() if key in REQUIRED} | {"model_type": "llama"}
    facts = facts_of(tmp_path, small)
    assert (facts.architecture, facts.kv_heads, facts.head_dim, facts.tied) == ("llama", 9, 64, True)
    assert facts_of(tmp_path, small | {"num_key_value_heads": None, "head_dim": None}) == facts


def test_the_text_part_of_a_larger_model_counts(tmp_path: Path) -> None:
    nested = {
        "architectures": ["VisionForCausalLM"],
        "hidden_size": 7,
        "text_config": {k: v for k, v in GOOD.items() if k != "architectures"},
    }
    assert facts_of(tmp_path, nested).hidden == 576


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", ["missing", 0, -1, "12", 1.5, True, None, [1]])
def test_a_size_that_is_none_is_named(key: str, value: object, tmp_path: Path) -> None:
    config = {name: entry for name, entry in (GOOD | {key: value}).items() if (name, entry) != (key, "missing")}
    with pytest.raises(SourceError, match=key) as caught:
        facts_of(tmp_path, config)
    assert caught.value.where == str(tmp_path / "config.json") and caught.value.fix


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"text_config": null}', b'{"text_config": 3}']
)
def test_what_is_no_configuration(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match="not the configuration of a decoder-only transformer"):
        read_facts(tmp_path)


def test_no_configuration(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match="No such file"):
            read_facts(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(changes=st.dictionaries(st.sampled_from([*GOOD, "head_dim", "text_config"]), JSON, min_size=1, max_size=3))
def test_any_configuration_is_read_or_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    try:
        facts = facts_of(tmp_path, GOOD | changes)
    except SourceError:
        return
    assert facts.parameters > 0 and facts.head_dim > 0 and isinstance(facts.architecture, str)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError):
        read_facts(tmp_path)
