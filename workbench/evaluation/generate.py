"""Greedy generation in batches, with what the model thought of each token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from workbench.evaluation.reply import Reply
from workbench.models.greedy import no_shipped_defaults

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BestTwo(LogitsProcessor):
    """Keeps the two highest log-probabilities of every step instead of the logits themselves.

    Attributes:
        steps: one tensor (rows, 2) for each generated position.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append((scores.float().topk(2).values - scores.float().logsumexp(-1, keepdim=True)).cpu())
        return scores


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    eos_ids: Collection[int],
) -> list[Reply]:
    """Continue each prompt greedily, until an end-of-sequence token, a stop string or the limit.

    Args:
        prompts: token ids; padded on the left, and masked there.
        stop: strings that end an answer and are cut off, with all that follows.
        eos_ids: tokens that end an answer, besides those of the model's generation configuration.
    """
    own = model.generation_config.eos_token_id
    ends = sorted({*eos_ids, *(own if isinstance(own, list) else [own] if own is not None else [])})
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    seen = BestTwo()
    with torch.inference_mode(), no_shipped_defaults(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                stop_strings=list(stop) or None,
            ),
            logits_processor=LogitsProcessorList([seen]),
            tokenizer=tokenizer if stop else None,
        )[:, longest:].cpu()
    answers = []
    for row, tokens in enumerate(output.tolist()):
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        length = len(tokens) if end is None else end + 1
        text = tokenizer.decode(tokens[: length if end is None else end], skip_special_tokens=True)
        length, text = _cut(tokenizer, tokens[:length], text, stop)
        best = torch.stack([step[row] for step in seen.steps[:length]]) if length else torch.empty(0, 2)
        margins = (best[:, 0] - best[:, 1]).tolist()
        answers.append(Reply(text.strip(), length, tuple(best[:, 0].tolist()), min(margins, default=None)))
    return answers


def _cut(tokenizer: PreTrainedTokenizerBase, tokens: list[int], text: str, stop: Sequence[str]) -> tuple[int, str]:
    """Number of tokens up to the first stop string, and the text before it. A row may run on while others in its batch do."""
    places = [text.find(string) for string in stop if string in text]
    if not places:
        return len(tokens), text
    kept = text[: min(places)]
    for length in range(1, len(tokens) + 1):
        if any(string in tokenizer.decode(tokens[:length], skip_special_tokens=True) for string in stop):
            return length, kept
    return len(tokens), kept
