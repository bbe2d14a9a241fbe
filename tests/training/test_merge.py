"""The merged model is the adapter, proved; what is not the adapter stops with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.training.jobs import features, fit, job
from workbench.errors import TrainingError
from workbench.models.load import load_model
from workbench.training.merge import Parity, check_parity, merge

PROMPTS = [row["input_ids"][:-2] for row in features(6)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    made = job(tmp_path_factory.mktemp("lora"), tiny, dtype="bfloat16", max_steps=10)
    fit(made)
    return made.trained


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, tiny: Path, adapter: Path) -> Path:
    out = tmp_path_factory.mktemp("merged")
    merge(tiny, adapter, out, dtype="bfloat16", trust_remote_code=False)
    return out


def parity(base: Path, adapter: Path, merged: Path, **settings: Any) -> Parity:
    told: list[float] = []
    found = check_parity(
        base,
        adapter,
        merged,
        PROMPTS,
        **{"tokens": 8, "max_logit_difference": 1.0, "dtype": "bfloat16", "trust_remote_code": False, **settings},
        advance=lambda done, note="", /: told.append(done),
    )
    assert told == [1, 2, 3, 4, 5, 6]
    return found


def test_a_trained_adapter_merges_to_the_same_answers(tiny: Path, adapter: Path, merged: Path) -> None:
    found = parity(tiny, adapter, merged)
    assert found.prompts == 6 and found.identical + found.near_ties == 6
    assert 0 < found.max_logit_difference < 0.5


def test_the_merged_weights_are_16_bits_of_the_exact_sum(tiny: Path, adapter: Path, merged: Path) -> None:
    weights, base = load_file(merged / "model.safetensors"), load_file(tiny / "model.safetensors")
    low = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    delta = 2 * low[f"base_model.model.{name}.lora_B.weight"] @ low[f"base_model.model.{name}.lora_A.weight"]
    expected = (base[f"{name}.weight"].float() + delta).to(torch.bfloat16)
    assert all(value.dtype == torch.bfloat16 for value in weights.values())
    assert not torch.equal(weights[f"{name}.weight"], base[f"{name}.weight"])
    torch.testing.assert_close(weights[f"{name}.weight"], expected, rtol=2**-7, atol=1e-6)  # at most one step of bfloat16


def test_tokenizer_files_are_the_base_s_bytes(tiny: Path, merged: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (tiny / name).read_bytes()
    assert not list(merged.glob("*.bin"))


def test_in_float32_nothing_is_lost(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    merge(tiny, adapter, tmp_path, dtype="float32", trust_remote_code=False)
    found = parity(tiny, adapter, tmp_path, dtype="float32")
    assert found.identical == 6 and found.max_logit_difference < 1e-3


def tampered(merged: Path, out: Path, name: str, change: float) -> Path:
    for file in merged.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(merged / "model.safetensors")
    weights[name] = (weights[name].float() * (1 + change)).to(torch.bfloat16)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_other_weights_stop_with_the_reason(tiny: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    other = tampered(merged, tmp_path, "model.layers.1.mlp.down_proj.weight", 20.0)
    with pytest.raises(TrainingError, match="the merged model is not the adapter: a logit differs by") as caught:
        parity(tiny, adapter, other)
    assert caught.value.where == "merge" and caught.value.fix
    with pytest.raises(TrainingError, match=r"token [1-8] of the answer is another"):
        parity(tiny, adapter, other, max_logit_difference=1e9)


def test_the_base_itself_is_not_the_adapter(tiny: Path, adapter: Path) -> None:
    with pytest.raises(TrainingError, match="not the adapter"):
        parity(tiny, adapter, tiny)


def test_a_tighter_limit_refuses_what_a_looser_one_lets_through(tiny: Path, adapter: Path, merged: Path) -> None:
    difference = parity(tiny, adapter, merged).max_logit_difference
    with pytest.raises(TrainingError, match=f"a logit differs by {difference / 10:.1g}|a logit differs by"):
        parity(tiny, adapter, merged, max_logit_difference=difference * 0.99)
    assert parity(tiny, adapter, merged, max_logit_difference=difference * 1.01).max_logit_difference == difference


def test_a_near_tie_is_counted_and_lets_the_merge_pass(tiny: Path, tmp_path: Path) -> None:
    """Two tokens with all but the same weights: which one wins is below what bfloat16 can tell."""
    base = tampered(tiny, _new(tmp_path / "base"), "model.norm.weight", 0.0)
    weights = load_file(base / "model.safetensors")
    prompt = torch.tensor([PROMPTS[0]])
    favourite = int(load_model(base, dtype="float32")(prompt).logits[0, -1].argmax())
    twin = 399 if favourite != 399 else 398
    embedding = weights["model.embed_tokens.weight"]
    embedding[twin] = embedding[favourite]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    made = job(tmp_path / "job", base, dtype="bfloat16", max_steps=1, learning_rate=1e-12)
    fit(made)  # an adapter that changes next to nothing
    merged = _new(tmp_path / "merged")
    merge(base, made.trained, merged, dtype="bfloat16", trust_remote_code=False)
    weights = load_file(merged / "model.safetensors")
    row = weights["model.embed_tokens.weight"][twin].float()
    state = load_model(base, dtype="float32")(prompt, output_hidden_states=True).hidden_states[-1][0, -1]
    largest = int((state * row).abs().argmax())
    bits = weights["model.embed_tokens.weight"][max(favourite, twin)].view(torch.int16)
    step = 1 if state[largest] * row[largest] > 0 else -1
    bits[largest] += step  # one step of bfloat16 further from zero (or nearer): the twin wins now
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    found = check_parity(
        base, made.trained, merged, PROMPTS[:1], tokens=1, max_logit_difference=1.0, dtype="bfloat16", trust_remote_code=False,
        advance=lambda done, note="", /: None,
    )  # fmt: skip
    assert (found.identical, found.near_ties) == (0, 1)
    assert found.max_logit_difference > 0


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_qlora_merges_into_the_16_bit_base(tiny: Path, tmp_path: Path) -> None:
    made = job(tmp_path / "job", tiny, dtype="bfloat16", method="qlora", max_steps=10)
    fit(made)
    out = _new(tmp_path / "merged")
    merge(tiny, made.trained, out, dtype="bfloat16", trust_remote_code=False)
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == load_file(tiny / "model.safetensors").keys()
    assert all(value.dtype == torch.bfloat16 for value in weights.values())
    assert "quantization_config" not in (out / "config.json").read_text()
    found = parity(tiny, made.trained, out)  # the adapter over the 16-bit base is what the merge has to equal
    assert found.identical + found.near_ties == 6


@pytest.mark.parametrize("train", [{"dora": True}, {"rslora": True}, {"modules_to_save": ["post_attention_layernorm"]}, {"layers": 1}])
def test_every_kind_of_adapter_merges(tiny: Path, tmp_path: Path, train: dict[str, Any]) -> None:
    made = job(tmp_path / "job", tiny, dtype="bfloat16", max_steps=8, **train)
    fit(made)
    out = _new(tmp_path / "merged")
    merge(tiny, made.trained, out, dtype="bfloat16", trust_remote_code=False)
    assert parity(tiny, made.trained, out).prompts == 6
    model = PeftModel.from_pretrained(load_model(tiny, dtype="float32"), str(made.trained)).eval()
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0]])
        moved = (model(ids).logits - load_model(tiny, dtype="float32")(ids).logits).abs().max()
    assert moved > 0.1  # or the parity would prove nothing


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, adapter: Path) -> None:
    from tests.support.tiny import make_model

    other, out = make_model(tmp_path / "other", hidden=128), tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrainingError, match="does not fit this base model: size mismatch"):
        merge(other, adapter, out, dtype="bfloat16", trust_remote_code=False)
    assert not list(out.iterdir())


def test_nothing_is_merged_into_a_quantised_base(tmp_path: Path, tiny: Path, adapter: Path) -> None:
    from transformers import BitsAndBytesConfig

    base = tmp_path / "nf4"
    load_model(tiny, quantization_config=BitsAndBytesConfig(load_in_4bit=True)).save_pretrained(base)
    with pytest.raises(TrainingError, match=r"quantised \(bitsandbytes\).*cannot be merged"):
        merge(base, adapter, tmp_path, dtype="bfloat16", trust_remote_code=False)
