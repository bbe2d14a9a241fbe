"""GPTQ through GPTQModel: what is refused, what is written, who can read it, and auto-gptq's own files."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.quantization.making import config, distance, loaded, logits, quantize, refused, texts, weight
from tests.support.workplace import NOBODY, RECIPE, furnish
from workbench.errors import EnvironmentFault, SourceError
from workbench.models.load import load_model
from workbench.models.parity import partings
from workbench.models.prepare import from_folder, refuse_nonfinite
from workbench.quantization import gptq
from workbench.quantization.gptq import GptqMethod
from workbench.quantization.quantizer import Made, Source
from workbench.recipe.schema import Gptq

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="GPTQModel is not installed: make install")

#: The checkpoints that the tests of this file share, by name.
SETTINGS: dict[str, dict[str, Any]] = {
    "4": {"bits": 4, "group_size": 32},
    "8": {"bits": 8, "group_size": -1},
    "asym": {"bits": 4, "group_size": 32, "sym": False, "desc_act": True},
}
GIVEN = texts(rows=32)


def method(**settings: Any) -> GptqMethod:
    return GptqMethod(Gptq(method="gptq", **settings))


Checkpoint = tuple[Path, Made, list[float]]


@pytest.fixture(scope="module")
def checkpoint(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Made when first asked for; read, never written to."""
    there: dict[str, Checkpoint] = {}

    def get(name: str) -> Checkpoint:
        if name not in there:
            there[name] = quantize(method(**SETTINGS[name]), lively, tmp_path_factory.mktemp(f"gptq-{name}") / "made", GIVEN)
        return there[name]

    return get


# Refusals ---------------------------------------------------------------------------------------------------------------


def test_a_group_that_does_not_divide_names_every_width(tmp_path: Path) -> None:
    sizes = {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
        "max_position_embeddings": 2048,
    }
    smollm = sizes | {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536}
    (tmp_path / "config.json").write_text(json.dumps(smollm))
    found = refused(method(group_size=128), tmp_path)
    assert list(found) == ["group_size"]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        assert f"{name} 576" in found["group_size"]
    assert "down_proj" not in found["group_size"], "128 divides 1536"
    assert "choose 32 or 64" in found["group_size"]
    assert refused(method(group_size=64), tmp_path) == refused(method(group_size=-1), tmp_path) == {}


def test_widths_that_no_group_divides(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 8, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"hidden_size": 40, "intermediate_size": 80}))
    assert "choose -1" in refused(method(), tmp_path)["group_size"]


def test_an_architecture_that_gptqmodel_does_not_know(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "newcomer"}))
    assert "does not know the architecture 'newcomer'" in refused(method(group_size=32), tmp_path)["method"]


def test_a_group_size_that_divides_and_no_kernel_runs(tiny_model: Path) -> None:
    """The real kernels of this machine; the key to change is the one named."""
    found = refused(method(group_size=8), tiny_model)
    assert list(found) == ["group_size"] and "no installed kernel runs 4 bits" in found["group_size"]


def test_without_gptqmodel(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "find_spec", lambda name: None if name == "gptqmodel" else importlib.util.find_spec(name))
    found = refused(method(group_size=48), tiny_model)
    assert list(found) == ["method"] and "pip install 'workbench[quantize]'" in found["method"]


def test_memory_grows_with_what_it_is_made_of(tiny_model: Path) -> None:
    from workbench.models.facts import read_facts

    facts = read_facts(tiny_model)
    few, many = (method(calibration={"rows": rows, "max_length": 100}).memory(facts, "bfloat16") for rows in (10, 1010))
    assert many - few == 1000 * 100 * facts.hidden * 2 * 2


def test_weights_that_are_no_numbers(tiny_model: Path, tmp_path: Path) -> None:
    """GPTQModel would not mind: it falls back to plain rounding, and saves what comes of it."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    refuse_nonfinite(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"model.layers.1.mlp.up_proj.weight holds values that are no numbers") as caught:
        refuse_nonfinite(folder)
    assert caught.value.where == str(folder / "model.safetensors")


# What is written --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most"), [("4", 0.35), ("8", 0.05), ("asym", 0.35)])
def test_saved_loaded_and_the_same(checkpoint: Callable[[str], Checkpoint], lively: Path, name: str, most: float) -> None:
    out, made, told = checkpoint(name)
    asked = {"bits": 4, "group_size": 64, "sym": True, "desc_act": False} | SETTINGS[name]
    found = config(out)
    assert (found["quant_method"], found["checkpoint_format"]) == ("gptq", "gptq")
    assert {key: found[key] for key in asked} == asked
    assert found["meta"]["damp_percent"] == 0.05
    assert told == [0.5, 1.0], "one step a layer"
    assert made.facts["quantize_seconds"] > 0 and (out / "quantize.log").stat().st_size > 0
    again, parent = loaded(out), loaded(lively)
    assert partings(again, made.probes, 4 * 2.0**-7)[1] == [], "ties aside: in memory another kernel runs than after loading"
    assert 0 < distance(parent, again, GIVEN.probes) < most
    assert weight(out) < weight(lively) * (0.8 if name == "8" else 0.72)
    assert (out / "chat_template.jinja").read_bytes() == (lively / "chat_template.jinja").read_bytes()


def by_gptqmodel(folders: list[Path], rows: Any, workspace: Path) -> list[list[Tensor]]:
    """The logits of checkpoints loaded by GPTQModel itself, which changes the process that it is in."""
    program = """
import json, sys, torch
from gptqmodel import GPTQModel
job = json.loads(open(sys.argv[1]).read())
found = []
for folder in job["folders"]:
    model = GPTQModel.load(folder, device="cpu", dtype=torch.bfloat16).model.eval()
    with torch.inference_mode():
        found.append([model(input_ids=torch.tensor([row])).logits[0].float() for row in job["rows"]])
torch.save(found, sys.argv[2])
"""
    (workspace / "job.json").write_text(json.dumps({"folders": [str(folder) for folder in folders], "rows": rows}))
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2"}
    command = [sys.executable, "-c", program, str(workspace / "job.json"), str(workspace / "logits.pt")]
    done = subprocess.run(command, check=False, cwd=workspace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(torch.load(workspace / "logits.pt"))


def test_gptqmodel_reads_it_as_we_do(checkpoint: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    folders = [checkpoint(name)[0] for name in SETTINGS]
    for folder, theirs in zip(folders, by_gptqmodel(folders, GIVEN.probes, tmp_path), strict=True):
        for one, other in zip(logits(loaded(folder), GIVEN.probes), theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.1)


# auto-gptq's own files --------------------------------------------------------------------------------------------------


def as_autogptq(folder: Path, out: Path, *, shards: bool = False, **changes: Any) -> Path:
    """A checkpoint as auto-gptq 0.7 lays it out."""
    shutil.copytree(folder, out)
    quantization = config(out)
    settings = {
        "bits": quantization["bits"],
        "group_size": quantization["group_size"],
        "damp_percent": 0.01,
        "desc_act": quantization["desc_act"],
        "static_groups": False,
        "sym": quantization["sym"],
        "true_sequential": True,
        "model_name_or_path": "somewhere/else",
        "model_file_base_name": "gptq_model-4bit-32g",
        "is_marlin_format": False,
        "quant_method": "gptq",
    }
    (out / "quantize_config.json").write_text(json.dumps(settings | changes))
    model = json.loads((out / "config.json").read_text())
    del model["quantization_config"]
    (out / "config.json").write_text(json.dumps(model))
    if not shards:
        (out / "model.safetensors").rename(out / "gptq_model-4bit-32g.safetensors")
        return out
    tensors, placed = load_file(out / "model.safetensors"), {}
    (out / "model.safetensors").unlink()
    for number in (0, 1):
        name = f"gptq_model-4bit-32g-0000{number + 1}-of-00002.safetensors"
        part = {key: tensor for index, (key, tensor) in enumerate(sorted(tensors.items())) if index % 2 == number}
        save_file(part, out / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    (out / "gptq_model-4bit-32g.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return out


def prepared(folder: Path, out: Path) -> Path:
    out.mkdir()
    from_folder(folder, out, link=True)
    return out


@pytest.mark.parametrize("name", ["4", "asym"])
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "shards"])
def test_a_checkpoint_in_autogptqs_own_layout(checkpoint: Callable[[str], Checkpoint], tmp_path: Path, name: str, shards: bool) -> None:
    original = checkpoint(name)[0]
    theirs = as_autogptq(original, tmp_path / "theirs", shards=shards)
    before = {file.name: file.read_bytes() for file in theirs.iterdir()}
    ours = prepared(theirs, tmp_path / "ours")
    assert {file.name: file.read_bytes() for file in theirs.iterdir()} == before, "a cache is never written to"
    for one, other in zip(logits(loaded(ours), GIVEN.probes), logits(loaded(original), GIVEN.probes), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["4", "asym"])
def test_zero_points_are_read_as_autogptq_wrote_them(
    checkpoint: Callable[[str], Checkpoint], lively: Path, tmp_path: Path, name: str
) -> None:
    """By the arithmetic of auto-gptq 0.7, written out: its files hold every zero point less one."""
    ours = prepared(as_autogptq(checkpoint(name)[0], tmp_path / "theirs"), tmp_path / "ours")
    tensors = load_file(ours / "model.safetensors")
    reference = load_model(lively)
    with torch.no_grad():
        for path in [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]:
            values = dequantised(*(tensors[f"{path}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")))
            reference.get_submodule(path).weight.copy_(values)
    assert distance(reference.eval(), loaded(ours), GIVEN.probes) < 0.02


def dequantised(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor) -> Tensor:
    """(out, in): four bits, eight to an int32; weights are packed along the inputs, zero points along the outputs."""
    shifts = torch.arange(0, 32, 4)
    weights = ((qweight[:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)  # (in, out)
    zeros = ((((qzeros[:, :, None] >> shifts) & 15).flatten(1)) + 1) & 15  # (groups, out)
    return (scales[g_idx].float() * (weights - zeros[g_idx])).T


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "is not the settings file"),
        ('{"bits": 4}', "is not the settings file of a GPTQ checkpoint (KeyError: 'group_size')"),
        ('{"bits": "four", "group_size": 32}', "is not the settings file"),
        ("{", "is not the settings file"),
        ('{"bits": 4, "group_size": 32, "is_marlin_format": true}', "in the marlin format"),
        ('{"bits": 4, "group_size": 32, "quant_method": "awq"}', "in the awq format"),
    ],
)
def test_settings_that_say_something_else(tiny_model: Path, tmp_path: Path, content: str, words: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "theirs"))
    (folder / "quantize_config.json").write_text(content)
    with pytest.raises(SourceError) as caught:
        prepared(folder, tmp_path / "ours")
    assert words in str(caught.value) and "quantize_config.json" in str(caught.value)


def test_a_run_evaluates_autogptqs_checkpoint(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    place = furnish(tmp_path / "desk", RECIPE)
    as_autogptq(checkpoint("4")[0], place.folder / "model")
    said = place("run", "desk.yaml", "--json")
    assert said.code == 0, said.err
    (row,) = said.json["candidates"]
    assert (row["kind"], row["n"]) == ("base", 20)

    for more, words in (
        ("quantize=[{method: bitsandbytes}]", "the model is quantised already (gptq)"),
        ("train={}", "an adapter cannot be merged into it: rounding would take most of it away again"),
    ):
        again = place("run", "desk.yaml", "--set", more)
        assert again.code == 2 and words in again.err, again.err
        assert "model" in again.err and "Traceback" not in again.err


# Children that fail -----------------------------------------------------------------------------------------------------


def test_a_child_that_dies_is_quoted(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(EnvironmentFault, match="quantisation ended without a result") as caught:
        method().quantize(Source(tiny_model, "bfloat16", False), tmp_path / "out", GIVEN, tmp_path, lambda *_: None)
    assert caught.value.where == str(tmp_path / "quantize.log")
