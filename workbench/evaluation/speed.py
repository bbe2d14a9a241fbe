"""How fast a quantised copy reads and writes, as a ratio to its parent: seconds are noisy, a ratio taken side by side is less so."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import EvaluationError
from workbench.progress import Advance

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Length of the prompt that is read, where the model's context holds it and the new tokens.
PREFILL_TOKENS = 256
#: Tokens written before anything is timed: kernels are chosen and packed, and memory is first touched, in the first passes.
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Speed:
    """Speeds at batch 1, medians over the repeats, and the variant's as a ratio to its parent's.

    Attributes:
        prefill_tokens_per_s, parent_prefill_tokens_per_s: tokens of the prompt read in a second.
        decode_tokens_per_s, parent_decode_tokens_per_s: tokens written in a second once the prompt has been read.
        prefill_ratio, decode_ratio: variant / parent, the median over the repeats; above 1 the variant is faster.
        prefill_ratio_low, prefill_ratio_high, decode_ratio_low, decode_ratio_high: smallest and largest ratio of any repeat.
        prefill_tokens, new_tokens, repeats: what was measured.
        device: `cpu` or the GPU's name.
        threads: that torch computed with.
    """

    prefill_tokens_per_s: float
    parent_prefill_tokens_per_s: float
    prefill_ratio: float
    prefill_ratio_low: float
    prefill_ratio_high: float
    decode_tokens_per_s: float
    parent_decode_tokens_per_s: float
    decode_ratio: float
    decode_ratio_low: float
    decode_ratio_high: float
    prefill_tokens: int
    new_tokens: int
    repeats: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_speed(
    parent: PreTrainedModel | PeftModel,
    variant: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    repeats: int,
    advance: Advance,
) -> Speed:
    """Let both models read the same prompt and write on, in turns, so that what else the machine does hits both.

    Decoding is a loop over forward passes with the model's own cache, not `model.generate`: its bookkeeping for each token is the
    same for both models, costs a small one about as much as a layer, and would draw the ratio towards 1; and the time of its prefill
    would have to be subtracted, with the noise of a second measurement. An engine's own overhead is therefore not in these figures.

    Args:
        parent, variant: loaded, in eval mode, each on its device.
        prompts: token ids; joined one after the other, and over again, to a prompt of 256 tokens, or what the context has room for.
        new_tokens: written greedily in each repeat; an end-of-sequence token does not stop it.
        repeats: turns of each model.
        advance: told the number of repeats done.

    Raises:
        EvaluationError: the prompts are empty, or the context holds no prompt besides the new tokens.
    """
    context = getattr(parent.config.get_text_config(), "max_position_embeddings", None)
    ids = torch.tensor([_prompt(prompts, context, new_tokens)])
    for model in (parent, variant):
        _turn(model, ids, min(WARM_UP_TOKENS, new_tokens))
    parents, variants = [], []
    for repeat in range(repeats):
        parents.append(_turn(parent, ids, new_tokens))
        variants.append(_turn(variant, ids, new_tokens))
        advance(repeat + 1)
    return Speed(
        **_figures("prefill", [turn.prefill for turn in parents], [turn.prefill for turn in variants]),
        **_figures("decode", [turn.decode for turn in parents], [turn.decode for turn in variants]),
        prefill_tokens=ids.shape[1],
        new_tokens=new_tokens,
        repeats=repeats,
        device=torch.cuda.get_device_name(variant.device) if variant.device.type == "cuda" else variant.device.type,
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class _Turn:
    """One model's turn: tokens read, and tokens written, in a second."""

    prefill: float
    decode: float


def _turn(model: PreTrainedModel | PeftModel, ids: torch.Tensor, new_tokens: int) -> _Turn:
    """Read `ids` (1, T) and write `new_tokens` greedily."""
    ids = ids.to(model.device)
    with torch.inference_mode():
        began = _now(model)
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        read = _now(model)
        for _ in range(new_tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        written = _now(model)
    return _Turn(ids.shape[1] / (read - began), new_tokens / (written - read))


def _now(model: PreTrainedModel | PeftModel) -> float:
    """The time, once the model's device has done all that it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _figures(what: str, parents: Sequence[float], variants: Sequence[float]) -> dict[str, float]:
    """The fields of `Speed` about one kind of work; ratios are taken repeat by repeat, so that a slow minute cancels out."""
    ratios = [variant / parent for variant, parent in zip(variants, parents, strict=True)]
    return {
        f"{what}_tokens_per_s": median(variants),
        f"parent_{what}_tokens_per_s": median(parents),
        f"{what}_ratio": median(ratios),
        f"{what}_ratio_low": min(ratios),
        f"{what}_ratio_high": max(ratios),
    }


def _prompt(prompts: Sequence[Sequence[int]], context: int | None, new_tokens: int) -> list[int]:
    """The prompts one after the other, and over again, up to `PREFILL_TOKENS` or what the context has room for."""
    length = PREFILL_TOKENS if context is None else min(PREFILL_TOKENS, context - new_tokens)
    if length < 1:
        raise EvaluationError(
            f"{new_tokens} new tokens leave no room for a prompt in the model's context of {context}", fix="measure with fewer new tokens"
        )
    if not any(prompts):
        raise EvaluationError("there is no prompt to measure speed with", fix="give at least one that has tokens")
    return list(itertools.islice(itertools.cycle(itertools.chain(*prompts)), length))
