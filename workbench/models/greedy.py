"""Greedy decoding as such: without the sampling settings and penalties that a model is shipped with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
