"""Quantising a tiny model by one method, and what the result says."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.models.facts import read_facts
from workbench.models.load import load_candidate
from workbench.quantization.quantizer import Made, Method, Source, Texts


def texts(rows: int = 0, probes: int = 6) -> Texts:
    """Random token ids of the tiny tokenizer."""
    draw = random.Random(0)
    made = [[draw.randrange(2, 400) for _ in range(draw.randrange(8, 40))] for _ in range(max(rows, probes))]
    return Texts(made[:rows], made[:probes])


def quantize(method: Method, model: Path, folder: Path, given: Texts, *, adapter: Path | None = None) -> tuple[Path, Made, list[float]]:
    """The new model folder, what making it left to know, and the shares of the work that were told on the way."""
    out, workspace, told = folder / "out", folder / "work", list[float]()
    out.mkdir(parents=True)
    workspace.mkdir()
    made = method.quantize(Source(model, "bfloat16", False, adapter), out, given, workspace, lambda done, note="", /: told.append(done))
    return out, made, told


def refused(method: Method, model: Path) -> dict[str, str]:
    return {one.key: f"{one.what}; {one.fix}" for one in method.refusals(read_facts(model))}


def config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


def loaded(folder: Path) -> Any:
    return load_candidate(folder, dtype="bfloat16", trust_remote_code=False)


def logits(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([list(row)])).logits[0].float() for row in rows]


def distance(one: Any, other: Any, rows: Sequence[Sequence[int]]) -> float:
    """How far the other's logits lie from the first's, as a share of their norm."""
    pairs = list(zip(logits(one, rows), logits(other, rows), strict=True))
    gap, norm = sum(float((b - a).square().sum()) for a, b in pairs), sum(float(a.square().sum()) for a, _ in pairs)
    return float((gap / norm) ** 0.5)


def weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
