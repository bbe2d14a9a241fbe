"""Perplexity: the log-probability that a model gives to the reference answer, read in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from workbench.evaluation.reply import Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_references(model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int) -> list[Reply]:
    """Log-probabilities of given answers; nothing is generated.

    Args:
        prompts, answers: token ids.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    longest, reach = max(map(len, rows)), max(map(len, answers))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        logits = (
            model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
                use_cache=False,
                logits_to_keep=reach + 1,
            )
            .logits[:, :-1]
            .float()
        )
        best = (logits.topk(2).values - logits.logsumexp(-1, keepdim=True)).cpu()
        chosen = logits.log_softmax(-1).gather(-1, ids[:, -reach:, None].to(logits.device))[..., 0].cpu()
    found = []
    for row, answer in enumerate(answers):
        margins = (best[row, -len(answer) :, 0] - best[row, -len(answer) :, 1]).tolist()
        found.append(Reply(None, len(answer), tuple(chosen[row, -len(answer) :].tolist()), min(margins)))
    return found
