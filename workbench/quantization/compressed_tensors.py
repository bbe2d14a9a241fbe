"""compressed-tensors through llm-compressor, whose pins exclude ours: another environment's Python runs one script over one job."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench import child
from workbench.errors import QuantizationError
from workbench.models.estimate import BYTES, RUNTIME_BYTES
from workbench.models.facts import ModelFacts
from workbench.models.prepare import copy_tokenizer
from workbench.progress import Advance
from workbench.quantization.quantizer import Made, Refusal, Source, Texts, group_refusals
from workbench.recipe.schema import Calibration, CompressedTensors

#: What the other Python runs; it imports nothing of Workbench.
SCRIPT = Path(__file__).with_name("llmcompressor_script.py")
#: Compute capability of the first GPUs that calculate in FP8 (Ada Lovelace).
FP8_CAPABILITY = (8, 9)


#: What `make llmcompressor` builds.
DEFAULT_PYTHON = Path(".venv-llmcompressor/bin/python")


@dataclass(frozen=True)
class CompressedTensorsMethod:
    """W4A16 and W8A8 by GPTQ (Frantar et al. 2022, arXiv:2210.17323), FP8 by rounding, as llm-compressor does them.

    Attributes:
        base: the recipe's folder, where its paths start.
    """

    section: CompressedTensors
    base: Path
    libraries = ("compressed-tensors", "transformers", "torch")

    @property
    def calibration(self) -> Calibration | None:
        return None if self.section.scheme == "FP8" else self.section.calibration

    @property
    def python(self) -> Path:
        """The other environment's Python. Not resolved: where its link leads, the environment is unknown."""
        if self.section.python is None:
            return Path.cwd() / DEFAULT_PYTHON
        return Path(os.path.abspath(self.base / Path(self.section.python).expanduser()))  # noqa: PTH100 - Path.absolute keeps `..`

    def refusals(self, facts: ModelFacts) -> list[Refusal]:
        found = list[Refusal]()
        if find_spec("compressed_tensors") is None:
            what = "to load the quantised model again takes the package compressed-tensors"
            found.append(Refusal("method", what, "pip install 'workbench[compressed]'"))
        if self.section.scheme == "W4A16":
            found += group_refusals(facts, self.section.group_size)
        if self.section.scheme == "FP8" and not _calculates_in_fp8():
            what = "FP8 needs a GPU of compute capability 8.9 or more, and there is none here"
            found.append(Refusal("scheme", what, "use scheme: W8A8, or run on such a GPU"))
        return found + self._python_refusals()

    def _python_refusals(self) -> list[Refusal]:
        """What is wrong with the other environment."""
        build = "`make llmcompressor` builds .venv-llmcompressor beside the Makefile; the path starts at the recipe's folder"
        if not self.python.is_file():
            return [Refusal("python", f"there is no {self.python}", build)]
        question = "import sys, importlib.util; sys.exit(importlib.util.find_spec('llmcompressor') is None)"
        try:
            done = subprocess.run([self.python, "-I", "-c", question], capture_output=True, check=False)
        except OSError as error:
            return [Refusal("python", f"{self.python} cannot be run: {error.strerror}", build)]
        return [Refusal("python", f"{self.python} has no llmcompressor", build)] if done.returncode else []

    def memory(self, facts: ModelFacts, dtype: str) -> int:
        """The model in its dtype; one block in float32 and its Hessians; the texts' hidden states, before and after a block."""
        weights = RUNTIME_BYTES + facts.parameters * BYTES[dtype]
        if self.calibration is None:
            return weights
        hessians = sum(width * width for _, width in facts.linear_shapes.values()) * 4 * 2  # and a Cholesky factor beside each
        states = self.calibration.rows * self.calibration.max_length * facts.hidden * BYTES[dtype] * 2
        return weights + facts.block_parameters * 4 + hessians + states

    def ahead(self, workspace: Path) -> AbstractContextManager[None]:
        return nullcontext()  # there is nothing to wait for

    def quantize(self, source: Source, out: Path, texts: Texts, workspace: Path, advance: Advance) -> Made:
        """Run the other Python, and follow it layer by layer.

        Raises:
            QuantizationError: the script said what is wrong.
            EnvironmentFault: it died without saying; its last words are quoted.
        """
        child.forget_outcome(workspace)
        events = workspace / "events.jsonl"
        events.unlink(missing_ok=True)  # a killed attempt begins anew
        job = workspace / "job.json"
        child.write_json(
            job,
            {
                "model": str(source.model.absolute()),
                "out": str(out.absolute()),
                "dtype": source.dtype,
                "trust_remote_code": source.trust_remote_code,
                "scheme": self.section.scheme,
                "group_size": self.section.group_size,
                **asdict(texts),
            },
        )

        def on_event(event: dict[str, Any]) -> None:
            advance(event["done"] / event["total"], event["note"])

        log = workspace / "quantize.log"
        code = child.follow([str(self.python), "-I", "-u", str(SCRIPT), str(job.absolute())], log=log, events=events, on_event=on_event)
        fix = "if memory ran out, lower calibration.rows or calibration.max_length; then run the same command again"
        result = child.outcome(workspace, code, what="quantisation", log=log, kind=QuantizationError, fix=fix)
        copy_tokenizer(source.model, out)
        shutil.copyfile(log, out / "quantize.log")
        return Made(result.pop("probes"), result)


def _calculates_in_fp8() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= FP8_CAPABILITY
