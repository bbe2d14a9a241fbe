"""Which weights are trained, from which start, and that gradients reach all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from tests.training.jobs import features
from workbench.errors import TrainingError
from workbench.models.load import load_model
from workbench.recipe.schema import Train
from workbench.training.adapters import linear_names, lora_config, trainable_model
from workbench.training.packing import PACKED, PackedBatch, prove_packing

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def adapted(folder: Path, **train: Any) -> Any:
    return trainable_model(folder, Train.model_validate(train), dtype="float32", attention=PACKED, trust_remote_code=False)


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    batch = PackedBatch()(features(3))
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).backward()
    return {name: value.grad for name, value in trained(model).items() if value.grad is not None}


def test_the_seed_comes_before_the_adapter(tiny: Path) -> None:
    torch.manual_seed(1)
    one = trained(adapted(tiny, seed=5))
    torch.manual_seed(2)
    same, other = trained(adapted(tiny, seed=5)), trained(adapted(tiny, seed=6))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_all_linear_layers_but_not_the_head(tiny: Path) -> None:
    model = load_model(tiny)
    assert linear_names(model) == LINEAR
    names = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained(adapted(tiny))}
    assert names == set(LINEAR)


def test_named_target_modules_only(tiny: Path) -> None:
    assert all(".q_proj." in name for name in trained(adapted(tiny, target_modules=["q_proj"])))


def test_only_the_last_layers_have_adapters_and_gradients(tiny: Path) -> None:
    found = gradients(adapted(tiny, layers=1))
    assert found and all(".layers.1." in name for name in found)
    assert all(".layers.1." in name for name in trained(adapted(tiny, layers=1)))


def test_modules_to_save_are_trained_in_full(tiny: Path) -> None:
    names = [name for name in trained(adapted(tiny, modules_to_save=["post_attention_layernorm"])) if "lora_" not in name]
    layers = "base_model.model.model.layers"
    assert names == [f"{layers}.{index}.post_attention_layernorm.modules_to_save.default.weight" for index in (0, 1)]


def test_full_trains_everything_in_float32(tiny: Path) -> None:
    model = trainable_model(tiny, Train(method="full"), dtype="bfloat16", attention=PACKED, trust_remote_code=False)
    assert all(value.requires_grad and value.dtype == torch.float32 for value in model.parameters())


@pytest.mark.parametrize(
    ("train", "where", "what"),
    [
        ({"target_modules": ["q_proj", "wq"]}, "train.target_modules", "no linear layer called 'wq'"),
        ({"modules_to_save": ["embedding"]}, "train.modules_to_save", "no module called 'embedding'"),
        ({"layers": 3}, "train.layers", "has 2 layers, fewer than 3"),
    ],
)
def test_what_the_model_does_not_have_is_refused(tiny: Path, train: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(TrainingError, match=what) as caught:
        adapted(tiny, **train)
    assert caught.value.where == where and caught.value.fix


def test_alpha_is_twice_the_rank_unless_given(tiny: Path) -> None:
    model = load_model(tiny)
    assert lora_config(model, Train(rank=4)).lora_alpha == 8
    assert lora_config(model, Train(rank=4, alpha=3)).lora_alpha == 3


def test_rank_stabilised_scaling(tiny: Path) -> None:
    plain, stabilised = adapted(tiny, rank=16), adapted(tiny, rank=16, rslora=True)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    assert plain.get_submodule(layer).scaling["default"] == 32 / 16
    assert stabilised.get_submodule(layer).scaling["default"] == 32 / 4


def test_dora_has_magnitudes(tiny: Path) -> None:
    assert any("lora_magnitude_vector" in name for name in trained(adapted(tiny, dora=True)))


def test_dropout_is_in_the_adapter(tiny: Path) -> None:
    model = adapted(tiny, dropout=0.5)
    assert model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_dropout.default").p == 0.5


def test_qlora_gradients_survive_an_evaluation(tiny: Path) -> None:
    """A forward pass in evaluation mode repacks 4-bit weights on some CPUs, and backward then loses the lower layers silently."""
    model = adapted(tiny, method="qlora", rank=4)
    assert any(isinstance(module, Linear4bit) for module in model.modules())
    model.train()
    before = {name: value.clone() for name, value in gradients(model).items()}
    model.zero_grad()
    prove_packing(model, features(3))  # an evaluation
    after = gradients(model)
    assert before.keys() == after.keys() == trained(model).keys()
    assert any(".layers.0." in name and value.abs().max() > 0 for name, value in after.items())
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)


def test_qlora_gradients_are_those_over_the_dequantised_weights(tiny: Path) -> None:
    import bitsandbytes.functional as bnb

    quantised, plain = adapted(tiny, method="qlora", rank=4), adapted(tiny, rank=4)
    plain.load_state_dict(trained(quantised), strict=False)
    for name, module in quantised.named_modules():
        if isinstance(module, Linear4bit):
            plain.get_submodule(name).weight.data = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
    for model in (quantised, plain):
        for name, value in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would leave A without a gradient
                torch.manual_seed(len(name))
                torch.nn.init.normal_(value, std=0.02)
    expected = gradients(plain)
    for name, value in gradients(quantised).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-3, msg=name)
