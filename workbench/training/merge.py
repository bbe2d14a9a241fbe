"""Merge a LoRA adapter into its base in 16 bits, and compare the result with base and adapter side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from workbench.errors import TrainingError
from workbench.models.greedy import greedy
from workbench.models.load import device, load_model, quantization
from workbench.models.prepare import copy_tokenizer
from workbench.models.quiet import hushed_gptqmodel
from workbench.progress import Advance


@dataclass(frozen=True)
class Parity:
    """How the merged model compares with base and adapter.

    Attributes:
        prompts: prompts that both answered greedily.
        identical: prompts with the same tokens to the end.
        near_ties: prompts that part at a token where the two best logits lie closer than the weights' dtype can tell apart.
        max_logit_difference: largest difference of a next-token logit, over all prompts, tokens and the vocabulary.
    """

    prompts: int
    identical: int
    near_ties: int
    max_logit_difference: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merge(base: Path, adapter: Path, out: Path, *, dtype: str, trust_remote_code: bool) -> None:
    """Write base + adapter as one model folder, in `dtype`, with the base's tokenizer.

    The sum is formed in float32 and rounded once. An adapter trained over a 4-bit base (QLoRA) is merged into the base's own
    16-bit weights: merging into 4 bits would round the adapter away.

    Raises:
        TrainingError: the base is quantised itself, or the adapter was trained on another model.
    """
    refuse_quantized(base)
    hushed_gptqmodel()  # PEFT imports it
    model = load_model(base, dtype="float32", trust_remote_code=trust_remote_code)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:  # shapes or modules that this base does not have
        what = f"the adapter does not fit this base model: {str(error).strip().splitlines()[-1].strip()[:200]}"
        raise TrainingError(what, where=str(adapter), fix="merge it into the model that it was trained on") from error
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    copy_tokenizer(base, out)


def refuse_quantized(base: Path) -> None:
    """Refuse to train an adapter that could not be merged afterwards.

    Raises:
        TrainingError: the base's weights are quantised.
    """
    method = quantization(base)
    if method is not None:
        raise TrainingError(
            f"the base model is quantised ({method}), and an adapter cannot be merged into it: rounding would take most of it away again",
            where="model.source",
            fix="name the 16-bit model; train.method: qlora quantises it for training only, and `quantize` after the merge",
        )


def check_parity(
    base: Path,
    adapter: Path,
    merged: Path,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    max_logit_difference: float,
    dtype: str,
    trust_remote_code: bool,
    advance: Advance,
) -> Parity:
    """Let both answer the same prompts greedily and compare tokens and logits.

    Both compute in float32 on the stored weights, so what differs is the merge and nothing else.

    Args:
        prompts: token ids.
        tokens: greedy tokens per prompt.
        max_logit_difference: largest difference that is tolerated.

    Raises:
        TrainingError: another token than the adapter's where that was no near-tie, or a larger logit difference.
    """
    stored = getattr(torch, dtype)
    one = (
        PeftModel.from_pretrained(load_model(base, dtype=dtype, trust_remote_code=trust_remote_code).float(), str(adapter))
        .to(device())
        .eval()
    )
    other = load_model(merged, dtype=dtype, trust_remote_code=trust_remote_code).float().to(device()).eval()
    identical = near_ties = 0
    largest = 0.0
    for index, prompt in enumerate(prompts):
        expected, logits = greedy(one, prompt, tokens)
        with torch.no_grad():  # the merged model reads the adapter's answer, so every position is comparable
            again = other(torch.tensor([[*prompt, *expected]], device=device())).logits[0, len(prompt) - 1 : -1].float().cpu()
        difference = (again - logits).abs().max().item()
        largest = max(largest, difference)
        parting = (again.argmax(-1) != torch.tensor(expected)).nonzero()[:, 0].tolist()
        best = logits.topk(2).values
        resolution = torch.finfo(stored).eps * best[:, 0].abs()
        real = [step for step in parting if best[step, 0] - best[step, 1] > resolution[step]]
        if difference > max_logit_difference or real:
            what = (
                f"a logit differs by {difference:.3g}"
                if difference > max_logit_difference
                else f"token {real[0] + 1} of the answer is another"
            )
            raise TrainingError(
                f"the merged model is not the adapter: {what} (validation prompt {index + 1})",
                where="merge",
                fix="a large adapter scale rounds badly: lower train.alpha or the learning rate, or set model.dtype: float32",
            )
        identical += not parting
        near_ties += bool(parting)
        advance(index + 1, f"largest logit difference {largest:.3g}")
    return Parity(len(prompts), identical, near_ties, largest)
