"""Greedy decoding as such: without the sampling settings and penalties that a model is shipped with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@contextmanager
def no_shipped_defaults(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, `model.generate` takes nothing from the model's generation_config.json but its end-of-sequence tokens.

    transformers fills what a caller leaves open from that file, penalties on repetition and n-grams included, and so lets the
    model's authors change which token is the greedy one.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter's generate reads its base model's
    shipped = owner.generation_config
    owner.generation_config = GenerationConfig(eos_token_id=shipped.eos_token_id)
    try:
        yield
    finally:
        owner.generation_config = shipped


def greedy(model: PreTrainedModel | PeftModel, prompt: Sequence[int], tokens: int) -> tuple[list[int], torch.Tensor]:
    """The greedy continuation, at most `tokens` long, and the logits that chose it: (tokens, vocabulary), float32 on the CPU."""
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode(), no_shipped_defaults(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    return output.sequences[0, len(prompt) :].tolist(), torch.stack(output.logits)[:, 0].float().cpu()


def probes(model: PreTrainedModel, prompts: Sequence[Sequence[int]], tokens: int) -> list[dict[str, Any]]:
    """What a model answers, in a form that another load of it can be held against.

    Returns:
        For each prompt its token ids, those of the answer, and for each of these by how much its logit beat the second best, with the
        size of that logit.
    """
    found = []
    for prompt in prompts:
        said, logits = greedy(model, prompt, tokens)
        best = logits.topk(2).values
        found.append({"prompt": list(prompt), "answer": said, "margins": (best[:, 0] - best[:, 1]).tolist(), "logits": best[:, 0].tolist()})
    return found


def partings(model: PreTrainedModel, found: Sequence[Mapping[str, Any]], resolution: float) -> tuple[int, list[int]]:
    """Hold a model against the probes of another load of it; it reads the answers, so every position is comparable.

    Args:
        resolution: two logits closer than this share of the larger one are a tie.

    Returns:
        How many probes it answers with the same tokens, and the numbers of those that part from it where there was no tie.
    """
    identical, real = 0, []
    for number, one in enumerate(found):
        ids = torch.tensor([[*one["prompt"], *one["answer"]]], device=model.device)
        with torch.inference_mode():
            best = model(input_ids=ids).logits[0, len(one["prompt"]) - 1 : -1].argmax(-1).tolist()
        parting = [step for step, (token, said) in enumerate(zip(best, one["answer"], strict=True)) if token != said]
        identical += not parting
        if any(one["margins"][step] > resolution * abs(one["logits"][step]) for step in parting):
            real.append(number)
    return identical, real
