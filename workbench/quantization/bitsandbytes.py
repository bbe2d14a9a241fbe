"""bitsandbytes: weights are rounded one by one as they are loaded, so there is nothing to calibrate and nothing to wait for."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from workbench.models.estimate import BYTES, RUNTIME_BYTES
from workbench.models.facts import ModelFacts
from workbench.progress import Advance
from workbench.quantization.quantizer import Made, Refusal, Source, Texts
from workbench.recipe.schema import Bitsandbytes


@dataclass(frozen=True)
class BitsandbytesMethod:
    """LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) and NF4/FP4 (Dettmers et al. 2023, arXiv:2305.14314)."""

    section: Bitsandbytes
    calibration = None
    libraries = ("bitsandbytes", "transformers", "torch")

    def refusals(self, facts: ModelFacts) -> list[Refusal]:
        """Four bits are stored two to a byte in blocks of 64; a matrix that ends inside a block cannot be loaded again."""
        if self.section.bits == 8:
            return []
        odd = [name for name, (out, width) in facts.linear_shapes.items() if out * width % 64]
        fix = "use bits: 8, or method gptq with a group_size that divides the widths"
        return [Refusal("bits", f"4 bits need weights in blocks of 64, and {odd[0]} does not divide into them", fix)] if odd else []

    def memory(self, facts: ModelFacts, dtype: str) -> int:
        return RUNTIME_BYTES + facts.parameters * BYTES[dtype] * 2  # the weights, and their copies while they are packed

    def ahead(self, workspace: Path) -> AbstractContextManager[None]:
        return nullcontext()  # there is nothing to wait for

    def quantize(self, source: Source, out: Path, texts: Texts, workspace: Path, advance: Advance) -> Made:
        import torch
        from transformers import BitsAndBytesConfig

        from workbench.models.load import ADAPTER, device, load_model, with_adapter
        from workbench.models.parity import expectations
        from workbench.models.prepare import copy_tokenizer

        one = self.section
        config = (
            BitsAndBytesConfig(load_in_8bit=True)
            if one.bits == 8
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=one.type,
                bnb_4bit_use_double_quant=one.double,
                bnb_4bit_compute_dtype=getattr(torch, one.compute_dtype),
            )
        )
        model = load_model(
            source.model,
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            quantization_config=config,
            device_map={"": device()},
        )
        advance(0.5)
        model.save_pretrained(out)  # before the probes: the CPU's kernels repack the weights as soon as they are used
        copy_tokenizer(source.model, out)
        if source.adapter is not None:
            shutil.copytree(source.adapter, out / ADAPTER, ignore=shutil.ignore_patterns("*.jsonl", "artifact.json"))
            model = with_adapter(model, out / ADAPTER)
        found = expectations(model.eval(), texts.probes)
        advance(1.0)
        return Made(found, {})
