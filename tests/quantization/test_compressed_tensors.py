"""The seam to llm-compressor is a command: what is refused, what the job says, and what comes back from the real environment."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import EnvironmentFault, QuantizationError
from workbench.models.facts import read_facts
from workbench.quantization.compressed_tensors import SCRIPT, CompressedTensorsMethod
from workbench.quantization.quantizer import Source, Texts
from workbench.recipe.schema import CompressedTensors

ROOT = Path(__file__).parents[2]
OTHER = ROOT / ".venv-llmcompressor" / "bin" / "python"


def method(python: str | Path = OTHER, **settings: Any) -> CompressedTensorsMethod:
    return CompressedTensorsMethod(CompressedTensors(method="compressed_tensors", python=str(python), **settings), ROOT)


def texts(rows: int, *, probes: int = 2) -> Texts:
    """Random token ids: the tiny model knows no others."""
    draw = random.Random(0)
    made = [[draw.randrange(2, 400) for _ in range(draw.randrange(8, 40))] for _ in range(max(rows, probes))]
    return Texts(made[:rows], made[:probes])


def refused(chosen: CompressedTensorsMethod, model: Path) -> dict[str, str]:
    return {one.key: f"{one.what}; {one.fix}" for one in chosen.refusals(read_facts(model))}


@pytest.fixture
def other() -> Path:
    if not (OTHER.parent.parent / ".installed").exists():
        pytest.skip("make llmcompressor")
    return OTHER


def test_an_interpreter_that_is_not_there(tiny_model: Path) -> None:
    found = refused(method("nowhere/bin/python", group_size=32), tiny_model)
    assert list(found) == ["python"]
    assert f"there is no {ROOT}/nowhere/bin/python" in found["python"] and "make llmcompressor" in found["python"]


def test_an_interpreter_that_is_none(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("")
    assert "cannot be run: Permission denied" in refused(method(tmp_path / "python", group_size=32), tiny_model)["python"]


def test_an_interpreter_without_llmcompressor(tiny_model: Path) -> None:
    found = refused(method(sys.executable, group_size=32), tiny_model)
    assert "has no llmcompressor" in found["python"] and "make llmcompressor" in found["python"]


def test_a_group_that_does_not_divide_the_widths(tiny_model: Path) -> None:
    found = refused(method(group_size=48), tiny_model)
    assert "q_proj 64" in found["group_size"] and "choose 32 or 64" in found["group_size"]
    assert "group_size" not in refused(method(scheme="W8A8"), tiny_model), "one scale per row: nothing to divide"


def test_fp8_wants_a_gpu_that_calculates_in_it(tiny_model: Path) -> None:
    import torch

    able = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    assert ("scheme" in refused(method(scheme="FP8"), tiny_model)) is not able
    assert method(scheme="FP8").calibration is None and method(scheme="W8A8").calibration is not None


def test_the_script_says_that_llmcompressor_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    """The real script, run by the Python of this environment."""
    with pytest.raises(QuantizationError, match="cannot import llm-compressor") as caught:
        method(sys.executable).quantize(Source(tiny_model, "bfloat16", False), tmp_path, texts(4), tmp_path, lambda *_: None)
    assert caught.value.fix == "make llmcompressor"
    job = json.loads((tmp_path / "job.json").read_text())
    assert job["model"] == str(tiny_model) and job["out"] == str(tmp_path)
    assert (job["scheme"], job["group_size"], job["dtype"], job["trust_remote_code"]) == ("W4A16", 64, "bfloat16", False)
    assert [job["calibration"], job["probes"]] == [texts(4).calibration, texts(4).probes]


def test_the_script_needs_nothing_of_workbench() -> None:
    """Nor anything else that the other environment has not."""
    imports = [node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"llmcompressor", "torch", "transformers"}


@pytest.mark.consumers
@pytest.mark.parametrize(("scheme", "bits", "most"), [("W4A16", 4, 0.15), ("W8A8", 8, 0.03)])
def test_the_quantised_model_is_read_here(
    scheme: str, bits: int, most: float, other: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads in this environment's transformers, expects what it did before it was saved, and almost what its parent does.

    Args:
        most: largest distance of the logits from the parent's, as a share of their norm. Seen: 0.08 with 4 bits, 0.01 with 8. With
            its layers' outputs set to zero the tiny model is 0.6 away, while the perplexity of a random model hardly moves.
    """

    from workbench.models.load import load_candidate, load_tokenizer
    from workbench.models.parity import partings

    out, workspace, heard = tmp_path / "out", tmp_path / "work", []
    out.mkdir()
    workspace.mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = method(other, scheme=scheme, **({"group_size": 32} if scheme == "W4A16" else {}))
    assert chosen.refusals(read_facts(tiny_model)) == []
    given = texts(24, probes=6)
    source = Source(tiny_model, "bfloat16", False)
    made = chosen.quantize(source, out, given, workspace, lambda done, note="", /: heard.append((done, note)))

    assert heard[0] == (0, "model.layers.0.self_attn.q_proj") and heard[-1][1] == "model.layers.1.mlp.down_proj"
    assert [done for done, _ in heard] == sorted(done for done, _ in heard) and heard[-1][0] < 1
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert config["quant_method"] == "compressed-tensors" and config["ignore"] == ["lm_head"]
    assert (weights["num_bits"], weights["group_size"]) == (bits, 32 if scheme == "W4A16" else None)
    assert made.facts["versions"]["llmcompressor"] and made.facts["quantize_seconds"] > 0
    assert made.facts["smoothed"] is (scheme == "W8A8"), "SmoothQuant knows the layers of a Llama"
    assert load_tokenizer(out).get_vocab() == load_tokenizer(tiny_model).get_vocab()

    parent, quantised = (load_candidate(folder, dtype="bfloat16", trust_remote_code=False) for folder in (tiny_model, out))
    identical, real = partings(quantised, made.probes, resolution=0.02)
    assert real == [] and identical >= 4
    assert 0 < distance(parent, quantised, given.calibration) < most


@pytest.mark.consumers
def test_a_crash_of_the_other_python_is_quoted(other: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            os.link(file, tmp_path / "model" / file.name)
    with pytest.raises(EnvironmentFault, match="safetensors") as caught:
        method(other).quantize(Source(tmp_path / "model", "bfloat16", False), tmp_path, texts(2), tmp_path, lambda *_: None)
    assert caught.value.where == str(tmp_path / "quantize.log")


def distance(parent: Any, other: Any, rows: Any) -> float:
    """How far the other's logits lie from the parent's, as a share of their norm."""
    import torch

    with torch.inference_mode():
        pairs = [[model(input_ids=torch.tensor([row])).logits.float() for model in (parent, other)] for row in rows]
    return math.sqrt(sum(float((b - a).square().sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs))
