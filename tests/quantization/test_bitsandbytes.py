"""bitsandbytes: what was asked for is what was saved, and what was saved answers as it did before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.quantization.making import config, distance, loaded, logits, quantize, refused, texts, weight
from workbench.models.load import ADAPTER, load_model
from workbench.models.parity import partings
from workbench.quantization.bitsandbytes import BitsandbytesMethod
from workbench.recipe.schema import Bitsandbytes


def method(**settings: Any) -> BitsandbytesMethod:
    return BitsandbytesMethod(Bitsandbytes(method="bitsandbytes", **settings))


@pytest.mark.parametrize(
    ("settings", "bits", "most"),
    [
        ({"bits": 8}, 8, 0.05),
        ({}, 4, 0.35),
        ({"type": "fp4"}, 4, 0.35),
        ({"double": True}, 4, 0.35),
        ({"compute_dtype": "float32"}, 4, 0.35),
    ],
    ids=str,
)
def test_saved_loaded_and_the_same(lively: Path, tmp_path: Path, settings: dict[str, Any], bits: int, most: float) -> None:
    """
    Args:
        most: largest distance of the logits from the parent's, as a share of their norm. Seen: 0.28 with NF4.
    """
    given = texts()
    out, made, told = quantize(method(**settings), lively, tmp_path, given)
    assert told == [0.5, 1.0]
    found = config(out)
    assert found["quant_method"] == "bitsandbytes" and found[f"load_in_{bits}bit"] is True
    if bits == 4:
        assert found["bnb_4bit_quant_type"] == settings.get("type", "nf4")
        assert found["bnb_4bit_use_double_quant"] is settings.get("double", False)
        assert found["bnb_4bit_compute_dtype"] == settings.get("compute_dtype", "bfloat16")
    again = loaded(out)
    assert partings(again, made.probes, 4 * 2.0**-7) == (6, [])
    parent = loaded(lively)
    assert 0 < distance(parent, again, given.probes) < most
    # Of 164 kB, 66 are the embedding, which stays; the rest shrinks to its bits and its scales.
    assert weight(out) < weight(lively) * (0.8 if bits == 8 else 0.7)
    assert {file.name for file in out.iterdir()} >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"}


def test_double_quantisation_takes_less_space(lively: Path, tmp_path: Path) -> None:
    plain, double = (quantize(method(double=one), lively, tmp_path / str(one), texts())[0] for one in (False, True))
    assert weight(double) != weight(plain)


def test_another_model_answers_otherwise(lively: Path, tmp_path: Path) -> None:
    """What `partings` is there to find: the folder of another quantisation."""
    _, made, _ = quantize(method(bits=8), lively, tmp_path / "one", texts())
    model = load_model(lively)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    broken = tmp_path / "broken"
    shutil.copytree(lively, broken)
    model.save_pretrained(broken)
    other, _, _ = quantize(method(bits=8), broken, tmp_path / "other", texts())
    assert partings(loaded(other), made.probes, 4 * 2.0**-7)[1]


def test_an_adapter_stays_over_the_quantised_base(lively: Path, tmp_path: Path) -> None:
    """Loaded by Workbench it answers as PEFT's own model over bitsandbytes' own quantised base."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    peft = get_peft_model(load_model(lively), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    peft.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "artifact.json").write_text("{}")
    given = texts()
    out, made, _ = quantize(method(keep_adapter=True), lively, tmp_path / "with", given, adapter=tmp_path / "adapter")
    assert not (out / ADAPTER / "artifact.json").exists(), "an artifact holds no other"
    again = loaded(out)
    assert partings(again, made.probes, 4 * 2.0**-7) == (6, [])

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    reference = PeftModel.from_pretrained(load_model(lively, quantization_config=four, device_map={"": "cpu"}), str(tmp_path / "adapter"))
    for one, other in zip(logits(again, given.probes), logits(reference.eval(), given.probes), strict=True):
        torch.testing.assert_close(one, other)
    bare, _, _ = quantize(method(), lively, tmp_path / "without", given)
    assert distance(loaded(bare), again, given.probes) > 0.1, "the adapter does something"


def test_blocks_of_64_weights(tmp_path: Path) -> None:
    import json

    sizes = {"num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 8, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"hidden_size": 12, "intermediate_size": 24}))
    assert "q_proj does not divide" in refused(method(), tmp_path)["bits"] and "bits: 8" in refused(method(), tmp_path)["bits"]
    assert refused(method(bits=8), tmp_path) == {}
