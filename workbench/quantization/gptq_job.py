"""What `python -m` runs to quantise one model with GPTQModel: `python -m workbench.quantization.gptq_job JOB`.

It may be started before the file JOB is there: it imports GPTQModel, then waits for a line on standard input. End of file ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from workbench.child import leave_error, leave_with_parent, write_json
from workbench.errors import QuantizationError, WorkbenchError
from workbench.recipe.schema import Gptq

#: Most tokens, padding included, of calibration texts that go through a layer together; GPTQModel leaves padding out of the Hessians.
BATCH_TOKENS = 2048


def main() -> None:
    """Quantise when told to, and leave `result.json`, or in `error.json` what the user can cure."""
    leave_with_parent()
    job = Path(sys.argv[1])
    os.chdir(job.parent)  # GPTQModel writes logs into the working directory
    import gptqmodel  # noqa: F401 - takes many seconds, with torch and transformers

    if not sys.stdin.readline():
        return
    try:
        result = quantize(json.loads(job.read_text()), job.parent)
    except WorkbenchError as error:
        leave_error(job.parent, error)
        return
    write_json(job.parent / "result.json", result)


def quantize(job: dict[str, Any], workspace: Path) -> dict[str, Any]:
    """Run one job of `gptq.GptqMethod`.

    Returns:
        The seconds inside GPTQModel's `quantize`, the peak memory of this process, and what the quantised model expects in the
        probes, as it is in memory, not loaded again.

    Raises:
        QuantizationError: a layer's weights, or what flows through it, are no numbers.
    """
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format

    from workbench.models.load import device
    from workbench.models.machine import peak_memory
    from workbench.models.parity import expectations
    from workbench.models.prepare import copy_tokenizer

    section, source, out = Gptq.model_validate(job["section"]), Path(job["model"]), Path(job["out"])
    config = QuantizeConfig(
        bits=section.bits,
        group_size=section.group_size,
        desc_act=section.desc_act,
        act_group_aware=section.group_size > 0 and not section.desc_act,  # GPTQModel's default, which it refuses for whole rows
        sym=section.sym,
        damp_percent=section.damping,
        device=device(),
        offload_to_disk=False,
    )
    trust = job["trust_remote_code"]
    model = GPTQModel.load(str(source), config, dtype=getattr(torch, job["dtype"]), trust_remote_code=trust)
    model.layer_callback = _Layers(workspace / "events.jsonl", model.model.config.get_text_config().num_hidden_layers)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["calibration"]]
    longest = max(map(len, job["calibration"]))
    started = time.perf_counter()
    try:
        model.quantize(rows, batch_size=max(1, BATCH_TOKENS // longest), calibration_data_min_length=1)
    except (RuntimeError, ValueError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise QuantizationError(
            f"GPTQModel gave up: {text}", where=str(source), fix="raise `damping`, or calibrate on more varied texts"
        ) from error
    seconds = time.perf_counter() - started
    model.save(str(out))
    copy_tokenizer(source, out)
    # In memory, too, every zero point now stands as in the file, less one; the kernels that want it whole would answer nonsense.
    convert_gptq_v1_to_v2_format(model.model, config, qlinear_kernel=model.qlinear_kernel)
    found = expectations(model.model.eval(), job["probes"])
    return {"quantize_seconds": seconds, "peak_memory_bytes": peak_memory(), "probes": found}


class _Layers:
    """Writes a line for each layer that is done, for the progress bar of the parent."""

    def __init__(self, events: Path, layers: int) -> None:
        self.events, self.layers = events, layers

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:  # told a second time, when the layer is packed
            return
        with self.events.open("a") as file:
            file.write(json.dumps({"layer": layer_idx + 1, "layers": self.layers}) + "\n")


if __name__ == "__main__":
    main()
