from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from workbench.models.kernels import kernel
from workbench.models.load import load_model


def loaded(folder: Path, **how: object) -> PreTrainedModel:
    return load_model(folder, quantization_config=BitsAndBytesConfig(**how))


def test_a_model_as_it_is(tiny_model: Path) -> None:
    assert kernel(load_model(tiny_model)) == "Linear"


def test_masks_are_no_weights() -> None:
    """GPT-2's blocks hold layers of transformers' own, and could hold a mask of booleans."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=32, n_embd=32, n_layer=2, n_head=4))
    model.transformer.h[0].attn.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))
    assert kernel(model) == "Linear"


def test_bitsandbytes(tiny_model: Path) -> None:
    assert kernel(loaded(tiny_model, load_in_4bit=True)) == "Linear4bit"
    assert kernel(loaded(tiny_model, load_in_8bit=True)) == "Linear8bitLt"


def test_under_an_adapter(tiny_model: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert kernel(get_peft_model(loaded(tiny_model, load_in_4bit=True), adapter)) == "Linear4bit"
    assert kernel(get_peft_model(load_model(tiny_model), adapter)) == "Linear"


def test_a_saved_copy(tiny_model: Path, tmp_path: Path) -> None:
    loaded(tiny_model, load_in_4bit=True).save_pretrained(tmp_path)
    assert kernel(load_model(tmp_path)) == "Linear4bit"


def packed() -> nn.Module:
    """A layer of GPTQModel's."""
    layers = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    return layers.TorchLinear(bits=4, group_size=32, sym=True, desc_act=False, in_features=64, out_features=64, register_buffers=True)


def test_several_kernels_are_all_named(tiny_model: Path) -> None:
    model = loaded(tiny_model, load_in_4bit=True)
    model.model.layers[1].self_attn.o_proj = packed()
    assert kernel(model) == "Linear4bit, TorchLinear"


def test_only_the_blocks_count(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    model.lm_head = packed()
    assert kernel(model) == "Linear"


def test_eight_bit_floats_are_quantised(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    layer.__class__ = type("FP8Linear", (nn.Linear,), {})
    assert kernel(model) == "FP8Linear"


def test_compressed_tensors_keeps_the_class(tiny_model: Path) -> None:
    """With the library, where it is installed: it marks torch's own layers."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    model = load_model(tiny_model)
    scheme = quantization.QuantizationConfig(config_groups={"W8A8": ["Linear"]}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, scheme)
    assert kernel(model) == "compressed-tensors Linear"
