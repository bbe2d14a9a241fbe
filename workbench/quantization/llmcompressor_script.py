"""What another environment's Python runs to quantise one model with llm-compressor: `python -I llmcompressor_script.py JOB.json`.

llm-compressor's pins exclude Workbench's, so nothing of Workbench is imported here: a file of JSON comes in, and beside it go
`events.jsonl` and, at the end, `result.json` or `error.json`. `-I` keeps this folder, whose modules are named after the libraries
they use, off the module path.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Quantise, and leave `result.json`, or in `error.json` what the user can cure."""
    job_file = Path(sys.argv[1])
    folder = job_file.parent
    try:
        import llmcompressor  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        what = f"{sys.executable} cannot import llm-compressor: {error}"
        leave(folder / "error.json", {"what": what, "where": None, "fix": "make llmcompressor"})
        return
    leave(folder / "result.json", quantize(json.loads(job_file.read_text()), folder / "events.jsonl"))


def quantize(job: dict[str, Any], events: Path) -> dict[str, Any]:
    """Run one job of `compressed_tensors.CompressedTensorsMethod`.

    Returns:
        The versions that did it, the seconds inside `oneshot`, whether SmoothQuant went first, and what the quantised model
        expected in the probes before it was saved.
    """
    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=getattr(torch, job["dtype"]),
        trust_remote_code=job["trust_remote_code"],
        use_safetensors=True,
        local_files_only=True,
    )
    steps = modifiers(job["scheme"], job["group_size"], type(model).__name__)
    progress = Progress(model, events, passes=len(steps))
    rows = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in job["calibration"]]
    started = time.perf_counter()
    oneshot(
        model=model,
        recipe=steps,
        dataset=torch.utils.data.DataLoader(rows, batch_size=None) if rows else None,  # rows are batches already, each of its length
        trust_remote_code_model=job["trust_remote_code"],
    )
    seconds = time.perf_counter() - started
    progress.remove()
    found = [expectations(model.eval(), text) for text in job["probes"]]
    model.save_pretrained(job["out"], save_compressed=True)
    libraries = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    return {
        "versions": {name: version(name) for name in libraries},
        "quantize_seconds": seconds,
        "smoothed": len(steps) > 1,
        "probes": found,
    }


def modifiers(scheme: str, group_size: int, architecture: str) -> list[Any]:
    """llm-compressor's documented recipe for each scheme; the head stays in 16 bits.

    Args:
        group_size: of W4A16, instead of its preset's 128.
        architecture: decides whether SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) can go before W8A8.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY

    if scheme == "FP8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])]
    if scheme == "W8A8":
        smooth = [SmoothQuantModifier(smoothing_strength=0.8)] if architecture in MAPPINGS_REGISTRY else []
        return [*smooth, GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])]
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    return [GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])]


class Progress:
    """Writes a line for each linear layer that the texts reach; llm-compressor goes through them in order, once per modifier."""

    def __init__(self, model: Any, events: Path, *, passes: int) -> None:
        import torch

        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
        self.events, self.names, self.passes = events, names, passes
        self.reached: set[str] = set()
        self.finished = 0
        self.hooks = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: self.reach(name)) for name in names]

    def reach(self, name: str) -> None:
        """A layer is at work."""
        if name == self.names[0] and self.names[-1] in self.reached:  # the next modifier begins
            self.finished += len(self.names)
            self.reached.clear()
        if name not in self.reached:
            self.reached.add(name)
            line = {"done": self.finished + len(self.reached) - 1, "total": self.passes * len(self.names), "note": name}
            with self.events.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        """Watch no longer."""
        for hook in self.hooks:
            hook.remove()


def expectations(model: Any, text: list[int]) -> dict[str, Any]:
    """What the model expects after every token of a text, in the form of `workbench.models.parity.expectations`."""
    import torch

    with torch.inference_mode():
        best = model(input_ids=torch.tensor([text], device=model.device)).logits[0].float().topk(2)
    margins = (best.values[:, 0] - best.values[:, 1]).tolist()
    return {"text": text, "best": best.indices[:, 0].tolist(), "margins": margins, "logits": best.values[:, 0].tolist()}


def leave(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file under a temporary name, then rename it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.rename(path)


if __name__ == "__main__":
    main()
