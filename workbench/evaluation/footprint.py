"""What one model folder costs to load and to hold, measured in a process of its own: `python -m workbench.evaluation.footprint JOB`."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import child
from workbench.errors import EvaluationError, WorkbenchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """Time and memory of one model, alone in a fresh process.

    Attributes:
        load_seconds: from the folder to a model on its device that is ready to answer, the second time round: everything has been
            imported, the kernels have been chosen and built, and the files are in the operating system's page cache, so that a folder
            written a minute ago has no advantage. On a CPU, transformers maps files into memory instead of reading them where no
            weight has to be converted, and such a model takes next to no time to load.
        peak_memory_bytes: most memory at any moment of loading for the first time and answering the prompts one by one. With a GPU:
            torch's allocations there, which are weights, key-value cache and activations, but not CUDA's own context. Without: the
            resident memory of the whole process, which is all that and the interpreter with its libraries, 0.4 GB and more, those of
            the quantisation method included; pages of mapped weight files count once they have been read, although they are page
            cache that the system could take back. For a small model on a CPU the weights say more.
        weights_memory_bytes: the tensors that the loaded model would save, after it has answered: weights as they are packed, scales
            and buffers; shared ones once.
        device: `cuda` or `cpu`.
    """

    load_seconds: float
    peak_memory_bytes: int
    weights_memory_bytes: int
    device: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    folder: Path, *, dtype: str, trust_remote_code: bool, prompts: Sequence[Sequence[int]], new_tokens: int, workspace: Path
) -> Footprint:
    """Load a model folder in a child process, let it answer, and see what that takes.

    Args:
        folder: what `load_candidate` reads.
        dtype, trust_remote_code: as for `load_candidate`.
        prompts: token ids; answered greedily one after the other.
        new_tokens: in every answer; an end-of-sequence token does not stop it.
        workspace: a folder for the child's job, log and result.

    Raises:
        EvaluationError: the folder cannot be loaded.
        EnvironmentFault: the child died; the end of its log is quoted.
    """
    child.forget_outcome(workspace)
    job, log = workspace / "job.json", workspace / "footprint.log"
    fields = {"folder": str(folder), "dtype": dtype, "trust_remote_code": trust_remote_code, "new_tokens": new_tokens}
    child.write_json(job, {**fields, "prompts": [list(prompt) for prompt in prompts]})
    command = [sys.executable, "-m", "workbench.evaluation.footprint", str(job)]
    code = child.follow(command, log=log, events=workspace / "events.jsonl", on_event=lambda event: None)
    fix = "if memory ran out, the model is too large for this machine"
    result = child.outcome(workspace, code, what=f"measuring {folder.name}", log=log, kind=EvaluationError, fix=fix)
    return Footprint(**result)


def main() -> None:
    """Measure what the job file in the first argument names; leave `result.json` or `error.json` beside it."""
    child.leave_with_parent()
    job = Path(sys.argv[1])
    try:
        found = _measure(**json.loads(job.read_text()))
    except WorkbenchError as error:
        child.leave_error(job.parent, error)
        sys.exit(error.exit_code)
    child.write_json(job.parent / "result.json", found.to_json())


def _measure(folder: str, dtype: str, trust_remote_code: bool, prompts: list[list[int]], new_tokens: int) -> Footprint:
    from workbench.models.load import device, load_candidate
    from workbench.models.machine import peak_memory

    model = load_candidate(Path(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    for prompt in prompts:
        _answer(model, prompt, new_tokens)
    peak = peak_memory()
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    del model
    gc.collect()
    started = time.perf_counter()
    model = load_candidate(Path(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    _synchronise(model)
    return Footprint(time.perf_counter() - started, peak, sum(weights.values()), device())


def _answer(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> None:
    import torch
    from transformers import GenerationConfig

    from workbench.models.greedy import no_shipped_defaults

    ids = torch.tensor([prompt], device=model.device)
    settings = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    with torch.inference_mode(), no_shipped_defaults(model):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)


def _synchronise(model: PreTrainedModel) -> None:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


if __name__ == "__main__":
    main()
