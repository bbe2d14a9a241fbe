from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, GenerationConfig

from tests.support.loaded import tiny
from tests.support.tiny import make_model
from workbench.errors import EnvironmentFault, EvaluationError
from workbench.evaluation.footprint import Footprint, _answer, measure
from workbench.models.load import load_model

MB = 1 << 20


def run(folder: Path, workspace: Path, **changes: object) -> Footprint:
    workspace.mkdir(exist_ok=True)
    options = {"dtype": "bfloat16", "trust_remote_code": False, "prompts": [[40, 41, 42], [50, 51]], "new_tokens": 4, **changes}
    return measure(folder, workspace=workspace, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough to stand out from what the interpreter and its libraries vary by: 77 MB, of which 1 is the embedding."""
    return make_model(tmp_path_factory.mktemp("wide") / "model", layers=4, hidden=1024)


@pytest.fixture(scope="module")
def wide_footprint(on_cpu: None, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Footprint:
    return run(wide, tmp_path_factory.mktemp("work"))


def test_the_model_is_in_it_and_the_parents_own_memory_is_not(
    on_cpu: None, tiny_model: Path, wide: Path, wide_footprint: Footprint, tmp_path: Path
) -> None:
    """`getrusage` in a child reports at least what the process that forked it held."""
    held = torch.ones(1024 * MB // 4)
    small = run(tiny_model, tmp_path)
    assert small.peak_memory_bytes < held.nbytes
    weights = sum(tensor.nbytes for tensor in load_file(wide / "model.safetensors").values())
    assert wide_footprint.weights_memory_bytes == pytest.approx(weights, rel=0.01)
    assert 0.8 * weights < wide_footprint.peak_memory_bytes - small.peak_memory_bytes < 2.2 * weights
    assert wide_footprint.load_seconds > 0 and wide_footprint.device == "cpu"
    assert json.loads(json.dumps(small.to_json())) == small.to_json()


def test_what_answering_takes_is_in_it(on_cpu: None, wide: Path, wide_footprint: Footprint, tmp_path: Path) -> None:
    """Loading alone maps the weights, which are read once they are needed."""
    loaded = run(wide, tmp_path, prompts=[])
    assert wide_footprint.peak_memory_bytes > loaded.peak_memory_bytes + 0.5 * loaded.weights_memory_bytes


def test_the_weights_of_a_quantised_copy(on_cpu: None, wide: Path, tmp_path: Path) -> None:
    """Its scales are counted, one for 64 weights: 4 bytes, or 2 where bitsandbytes packs them for the processor."""
    copy = tmp_path / "nf4"
    load_model(wide, quantization_config=BitsAndBytesConfig(load_in_4bit=True)).save_pretrained(copy)
    found = run(copy, tmp_path / "work")
    linear, embedding = 4 * (1024 * 1024 * 2 + 1024 * 512 * 2 + 3 * 1024 * 2048), 512 * 1024 * 2
    assert linear * (0.5 + 2 / 64) < found.weights_memory_bytes - embedding < linear * (0.5 + 4 / 64) * 1.02


@pytest.mark.parametrize("length", [1, 6])
def test_an_answer_has_the_length_that_was_asked_for(length: int) -> None:
    """Of a model whose every token but one ends the sequence, and which is shipped with settings of its own."""
    model = tiny()[0]
    own, passes = model.generation_config, []
    model.generation_config = GenerationConfig(eos_token_id=list(range(511)), num_beams=3, max_length=5)
    hook = model.register_forward_hook(lambda _, args, output: passes.append(output.logits.shape[0]))
    try:
        _answer(model, [40, 41, 42], length)
    finally:
        model.generation_config = own
        hook.remove()
    assert passes == [1] * length


@pytest.mark.gpu
def test_on_a_gpu_the_gpus_memory_counts(wide: Path, tmp_path: Path) -> None:
    found = run(wide, tmp_path)
    assert found.device == "cuda" and found.weights_memory_bytes <= found.peak_memory_bytes < 3 * found.weights_memory_bytes


def test_a_folder_that_cannot_be_loaded(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"up_proj.weight is missing") as caught:
        run(folder, tmp_path / "work")
    assert caught.value.where == str(folder)


def test_a_child_that_dies_is_quoted(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(EnvironmentFault, match="measuring model ended without a result"):
        run(tiny_model, tmp_path)
