"""GPTQ through GPTQModel, auto-gptq's maintained successor: weights are rounded column by column, each error made up for by the rest."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench import child
from workbench.errors import QuantizationError
from workbench.models.estimate import BYTES, RUNTIME_BYTES
from workbench.models.facts import ModelFacts
from workbench.models.quiet import hushed_gptqmodel
from workbench.progress import Advance
from workbench.quantization.quantizer import Made, Refusal, Source, Texts, group_refusals
from workbench.recipe.schema import Calibration, Gptq

#: What `python -m` runs in the child.
ENTRY = "workbench.quantization.gptq_job"
#: Files in the workspace: what the child is to do, and what it and its libraries say.
JOB, LOG = "job.json", "quantize.log"


@dataclass(frozen=True)
class GptqMethod:
    """GPTQ (Frantar et al. 2022, arXiv:2210.17323).

    GPTQModel runs in a process of its own: it changes transformers and safetensors for everybody in its process, and its memory is
    the operating system's again when it is done.
    """

    section: Gptq
    standby: child.Standby = field(default_factory=child.Standby, compare=False, repr=False)
    libraries = ("gptqmodel", "transformers", "torch")

    @property
    def calibration(self) -> Calibration:
        return self.section.calibration

    def refusals(self, facts: ModelFacts) -> list[Refusal]:
        if find_spec("gptqmodel") is None:
            fix = "pip install 'workbench[quantize]' (it builds one small package, so it wants a C compiler)"
            return [Refusal("method", "GPTQ needs the package gptqmodel", fix)]
        from workbench.quantization.gptq_kernels import missing_kernel, supported

        one, found = self.section, list[Refusal]()
        if one.group_size > 0:
            found += group_refusals(facts, one.group_size)
        if not supported(facts.model_type):
            fix = "use method bitsandbytes, which quantises any linear layer"
            found.append(Refusal("method", f"GPTQModel does not know the architecture {facts.model_type!r}", fix))
        why = missing_kernel(one)
        if why is not None and not found:
            small = missing_kernel(one.model_copy(update={"group_size": -1})) is None  # then it is the group's size alone
            key, fix = ("group_size", "choose a size that it names") if small else ("bits", "choose bits: 4 or 8")
            found.append(Refusal(key, f"no installed kernel runs {one.bits} bits with these settings here: {why}", fix))
        return found

    def memory(self, facts: ModelFacts, dtype: str) -> int:
        """The model in its dtype; one block in float32 and its Hessians; the texts' hidden states, before and after a block."""
        hessians = sum(width * width for _, width in facts.linear_shapes.values()) * 4 * 2  # and a Cholesky factor beside each
        states = self.calibration.rows * self.calibration.max_length * facts.hidden * BYTES[dtype] * 2
        return RUNTIME_BYTES + facts.parameters * BYTES[dtype] + facts.block_parameters * 4 + hessians + states

    @contextmanager
    def ahead(self, workspace: Path) -> Iterator[None]:
        """Start the child, whose imports take more seconds than all else that it does beside quantising a small model."""
        self.standby.start(
            [sys.executable, "-m", ENTRY, str(workspace / JOB)],
            log=workspace / LOG,
            environment={"GPTQMODEL_CPU_WORKERS": str(max(2, (os.cpu_count() or 1) // 2)), "TORCHDYNAMO_DISABLE": "1"},
        )
        try:
            yield
        finally:
            self.standby.end()

    def quantize(self, source: Source, out: Path, texts: Texts, workspace: Path, advance: Advance) -> Made:
        """Let the child work, and follow it layer by layer.

        Raises:
            QuantizationError: the weights cannot be quantised, such as those that are no numbers.
            EnvironmentFault: the child died; its last words are quoted.
        """
        with self.ahead(workspace):
            child.forget_outcome(workspace)
            events, log = workspace / "events.jsonl", workspace / LOG
            events.unlink(missing_ok=True)  # a killed attempt begins anew
            child.write_json(
                workspace / JOB,
                {
                    "model": str(source.model),
                    "out": str(out),
                    "dtype": source.dtype,
                    "trust_remote_code": source.trust_remote_code,
                    "section": self.section.model_dump(),
                    **asdict(texts),
                },
            )
            process = self.standby.go()
            hushed_gptqmodel()  # to load the result takes it in this process, too: better now than when the child is done
            code = child.attend(process, events=events, on_event=partial(_progress, advance))
        fix = "if memory ran out, lower calibration.rows or calibration.max_length; then run the same command again"
        result = child.outcome(workspace, code, what="quantisation", log=log, kind=QuantizationError, fix=fix)
        shutil.copyfile(log, out / LOG)  # the loss of every layer, for whoever wonders
        return Made(result.pop("probes"), result)


def _progress(advance: Advance, event: dict[str, Any]) -> None:
    advance(event["layer"] / event["layers"], f"layer {event['layer']} of {event['layers']}")
