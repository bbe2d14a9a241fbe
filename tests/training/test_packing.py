"""Layout changes the time, never the result: packed, padded and one by one, and no row sees another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from tests.training.jobs import EOS, Feature, features
from workbench.data.render import IGNORED
from workbench.errors import TrainingError
from workbench.models.load import load_model
from workbench.training.packing import MULTIPLE, PACKED, PackedBatch, PaddedBatch, prove_packing

SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "sliding window shorter than the rows": {"model_type": "mistral", "sliding_window": 4},
    "sliding and full layers in turn": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2},
    "mixture of experts": {"model_type": "mixtral", "num_local_experts": 4},
    "as many key heads as heads": {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 16},
}


def build(config: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(0)
    settings = {**SIZES, **config}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(settings.pop("model_type"), **settings), attn_implementation=attention
    )
    return model.float().eval()


def summed_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")


def loss_and_gradients(model: Any, batches: Sequence[dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = torch.stack([summed_loss(model, batch) for batch in batches]).sum()
    total.backward()
    return total.item(), {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def packed_logits(model: Any, rows: Sequence[Feature]) -> Tensor:
    batch = PackedBatch()(rows)
    batch.pop("labels")
    with torch.no_grad():
        return model(**batch, use_cache=False).logits[0]


@pytest.mark.parametrize("name", MODELS)
def test_layout_changes_neither_loss_nor_gradients(name: str) -> None:
    rows = features(5, longest=20)
    packed = loss_and_gradients(build(MODELS[name], PACKED), [PackedBatch()(rows)])
    plain = build(MODELS[name], "sdpa")
    for other in (
        loss_and_gradients(plain, [PaddedBatch(EOS)(rows)]),
        loss_and_gradients(plain, [{n: torch.tensor([row[n]]) for n in ("input_ids", "labels")} for row in rows]),
    ):
        assert packed[0] == pytest.approx(other[0], rel=1e-6)
        assert packed[1].keys() == other[1].keys()
        for parameter, gradient in packed[1].items():
            torch.testing.assert_close(gradient, other[1][parameter], atol=2e-5, rtol=1e-4)


def test_the_sliding_window_is_felt() -> None:
    rows = features(3, shortest=10, longest=20)
    wide = build({"model_type": "mistral", "sliding_window": 64}, PACKED)
    narrow = build({"model_type": "mistral", "sliding_window": 4}, PACKED)
    assert (packed_logits(wide, rows) - packed_logits(narrow, rows)).abs().max() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_no_row_sees_another(name: str) -> None:
    model, rows = build(MODELS[name], PACKED), features(4)
    start, end = (sum(len(row["input_ids"]) for row in rows[:index]) for index in (1, 2))
    before = packed_logits(model, rows)
    tokens = list(rows[1]["input_ids"])
    tokens[0] += 1
    after = packed_logits(model, [rows[0], {**rows[1], "input_ids": tokens}, *rows[2:]])
    torch.testing.assert_close(after[:start], before[:start], atol=1e-6, rtol=0)
    torch.testing.assert_close(after[end:], before[end:], atol=1e-6, rtol=0)
    assert (after[start:end] - before[start:end]).abs().max() > 1e-3


def test_prove_packing_passes_attention(tiny: Path) -> None:
    for name in MODELS:
        assert prove_packing(build(MODELS[name], PACKED), features(3)) < 1e-5
    model = load_model(tiny, dtype="bfloat16", attn_implementation=PACKED)
    assert prove_packing(model, features(3)) < 0.05
    assert prove_packing(model, features(1)) == 0.0


MIXES = {"conv_L_cache": 3, "full_attn_idxs": [1]}
LEAKING: dict[str, dict[str, Any]] = {
    "state space": {"model_type": "mamba"},
    "state space and attention": {"model_type": "jamba", "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "short convolutions and attention": {"model_type": "lfm2", **MIXES},
    "attention of its own that knows no packing": {"model_type": "bloom"},
}


@pytest.mark.parametrize("name", LEAKING)
def test_prove_packing_finds_a_model_that_leaks(name: str) -> None:
    model = build(LEAKING[name], PACKED)
    model.train()
    with pytest.raises(TrainingError, match="influence each other") as caught:
        prove_packing(model, features(3))
    assert caught.value.fix == "set train.packing: false"
    assert model.training


def test_prove_packing_finds_a_convolution_in_bfloat16_too() -> None:
    model = build({"model_type": "lfm2", **MIXES, "initializer_range": 0.2}, PACKED).to(torch.bfloat16)
    with pytest.raises(TrainingError, match="influence each other"):
        prove_packing(model, features(3))


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "gemma2", "head_dim": 16}, "caps its attention logits"), ({"model_type": "stablelm"}, "does not hand packed rows on")],
)
def test_a_model_that_cannot_pack_says_so(config: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        prove_packing(build(config, PACKED), features(3))


def test_padding_that_equals_the_end_keeps_the_end_supervised() -> None:
    rows = features(4)
    batch = PaddedBatch(EOS)(rows)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["labels"][index, length - 1] == EOS
        assert (batch["labels"][index, length:] == IGNORED).all()
        assert batch["attention_mask"][index].sum() == length


def test_nothing_depends_on_the_padding() -> None:
    model, rows = build({"model_type": "llama"}, "sdpa"), features(4)
    losses = [summed_loss(model, PaddedBatch(pad)(rows)).item() for pad in (EOS, 7, 399)]
    assert losses[0] == losses[1] == losses[2]


def test_packing_computes_the_tokens_that_are_there_and_few_more() -> None:
    rows = features(4)
    batch = PackedBatch()(rows)
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == (1, -(-tokens // MULTIPLE) * MULTIPLE)
    assert (batch["packed_tokens"] > 0).sum() + 1 == tokens  # what fills up stands at place 0, and is counted by nobody
    assert batch["position_ids"][0, :tokens].tolist() == [place for row in rows for place in range(len(row["input_ids"]))]
    assert batch["input_ids"][0, :tokens].tolist() == [token for row in rows for token in row["input_ids"]]
    assert (batch["labels"][0, tokens:] == IGNORED).all() and not batch["packed_tokens"][tokens:].any()
    rectangle = batch["input_ids"][0][batch["packed_rows"]]
    assert rectangle.flatten()[batch["packed_tokens"][:tokens]].tolist() == batch["input_ids"][0, :tokens].tolist()
