"""Stages `quantize:<variant>`: one quantised copy of the model, saved, loaded again, and held against what it was before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.data.render import Renderer
from workbench.errors import QuantizationError
from workbench.progress import track
from workbench.quantization.quantizer import Source, Texts, method_of
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Bitsandbytes
from workbench.stages.calibration import ROWS
from workbench.stages.data import examples_of
from workbench.stages.stage import Stage, Work

#: Validation rows, prompt and answer, that are read before saving and after loading.
PROBES = 6
#: Two logits closer than this share of the larger are a tie: kernels add in other orders, in numbers of 8 bits.
RESOLUTION = 4 * 2.0**-7


def quantize_stage(loaded: Loaded, index: int, weights: Stage, calibration: Stage, data: Stage, adapter: Stage | None) -> Stage:
    """The stage that makes variant `quantize[index]`.

    Args:
        weights: whose artifact is quantised.
        adapter: the training stage whose adapter stays over the quantised model, where it is not merged.
    """
    recipe, section = loaded.recipe, loaded.recipe.quantize[index]
    method = method_of(section, loaded.base)

    def make(work: Work) -> dict[str, Any]:
        with method.ahead(work.workspace):  # before the imports: a child may import the same meanwhile
            from workbench.models.load import load_candidate, load_tokenizer
            from workbench.models.parity import partings
            from workbench.models.prepare import refuse_nonfinite

            parent, trust = work.inputs[weights.name].path, recipe.model.trust_remote_code
            refuse_nonfinite(parent)
            source = Source(parent, recipe.model.dtype, trust, work.inputs[adapter.name].path if adapter is not None else None)
            renderer = Renderer(load_tokenizer(parent, trust_remote_code=trust), recipe.task)
            examples = examples_of(work.inputs["data"].path, "validation")[:PROBES]
            probes = [renderer.row(example, "completion").input_ids for example in examples]
            texts = Texts(_rows(work.inputs[calibration.name].path / ROWS), probes)
            with track(f"quantising to {section.title}", 1.0) as advance:
                made = method.quantize(source, work.staging, texts, work.workspace, advance)
        again = load_candidate(work.staging, dtype=recipe.model.dtype, trust_remote_code=trust)
        identical, parted = partings(again, made.probes, RESOLUTION)
        if parted:
            raise QuantizationError(
                f"the saved model is not the one that was quantised: loaded again, it reads {len(parted)} of {len(probes)} rows "
                "otherwise, and not by a near-tie",
                where=loaded.where("quantize", index),
                fix="report this with the versions in environment.json; another bit width or method may do meanwhile",
            )
        return {
            "title": section.title,
            "method": section.method,
            "probes": len(probes),
            "reloaded_identically": identical,
            "reloaded_near_ties": len(probes) - identical,
            "calibration": dict(work.inputs[calibration.name].facts),
            "size_bytes": sum(file.stat().st_size for file in work.staging.rglob("*.safetensors")),
            **made.facts,
        }

    settings = {
        "quantize": section.model_dump(exclude={"calibration", "python"}),
        "dtype": recipe.model.dtype,
        "task": recipe.task.model_dump(include={"chat", "system"}),
    }
    inputs = (weights, calibration, data, *([adapter] if adapter is not None else []))
    return Stage(f"quantize:{section.title}", 1, settings, make, inputs, method.libraries, method.ahead)


def keeps_adapter(section: object) -> bool:
    """Whether a variant is the base model, quantised, with the adapter left over it."""
    return isinstance(section, Bitsandbytes) and section.keep_adapter


def _rows(path: Path) -> list[list[int]]:
    if not path.exists():
        return []
    return [list(map(int, row)) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def calibrated_on(facts: Mapping[str, Any]) -> str | None:
    """What a variant's rounding was fitted to, in words; None for one that needs no texts."""
    calibration = facts["calibration"]
    if not calibration["rows"]:
        return None
    general = f" and {calibration['general_rows']} general texts" if calibration["general_rows"] else ""
    answers = f", {calibration['answers']} different answers" if calibration["answers"] > 1 else ""
    return f"{calibration['task_rows']} training rows{general} ({calibration['tokens']} tokens{answers})"
