"""Is a model that was saved and loaded again still the same? It reads the same texts, and expects the same token after each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Most tokens, padding included, in one forward pass: what it takes must not stand out beside what quantising took.
PASS_TOKENS = 128


def expectations(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """What a model expects at every place of some texts, in a form that another load of it can be held against.

    Args:
        texts: token ids.

    Returns:
        For each text: `text`, its token ids; `best`, after each of them the token that is most likely next; `margins`, by how much its
        logit beats the second best; `logits`, the size of that logit. JSON-compatible.
    """
    found: list[dict[str, Any]] = []
    for part in _parts(texts):
        longest = max(map(len, part))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in part], device=model.device)  # causal: padding is not seen
        with torch.inference_mode():
            top = model(input_ids=ids, use_cache=False).logits.float().topk(2, dim=-1)
        values, tokens = top.values.cpu(), top.indices[..., 0].cpu()
        for row, text in enumerate(part):
            best = values[row, : len(text)]
            found.append(
                {
                    "text": list(text),
                    "best": tokens[row, : len(text)].tolist(),
                    "margins": (best[:, 0] - best[:, 1]).tolist(),
                    "logits": best[:, 0].tolist(),
                }
            )
    return found


def partings(model: PreTrainedModel, expected: Sequence[Mapping[str, Any]], resolution: float) -> tuple[int, list[int]]:
    """Hold a model against the expectations of another load of it.

    Args:
        resolution: two logits closer than this share of the larger one are a tie.

    Returns:
        How many texts it reads with the same expectations throughout, and the numbers of those where it parts from them and there was
        no tie.
    """
    identical, real = 0, list[int]()
    for number, (one, again) in enumerate(zip(expected, expectations(model, [one["text"] for one in expected]), strict=True)):
        parting = [place for place, (token, other) in enumerate(zip(one["best"], again["best"], strict=True)) if token != other]
        identical += not parting
        if any(one["margins"][place] > resolution * abs(one["logits"][place]) for place in parting):
            real.append(number)
    return identical, real


def _parts(texts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Texts in their order, cut so that a part, padded, has few tokens; a longer text goes alone."""
    start = 0
    for end in range(1, len(texts) + 1):
        if end == len(texts) or max(map(len, texts[start : end + 1])) * (end + 1 - start) > PASS_TOKENS:
            yield texts[start:end]
            start = end
