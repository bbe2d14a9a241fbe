"""Batches: rows padded to one rectangle, or laid end to end without padding, where no row can attend to another.

Packing computes everything but attention on exactly the tokens that are there. For attention the rows are gathered into a
rectangle, one row each, and plain causal attention runs on it: a row cannot see another because it is not in its rectangle
row, so nothing depends on a mask. What is learnt does not depend on the layout; only the time does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from workbench.data.render import IGNORED
from workbench.errors import TrainingError

#: Name under which transformers knows the attention below.
PACKED = "workbench_packed"

#: What to do about a model that cannot be packed.
WHERE, FIX = "train.packing", "set train.packing: false"

Feature = Mapping[str, Sequence[int]]


class PaddedBatch:
    """Collates rows into a rectangle, padded on the right. Padding is marked by position, so pad may equal eos.

    Returns (from a call): input_ids, attention_mask, labels; each (batch, longest row).
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        longest = max(len(feature["input_ids"]) for feature in features)

        def rectangle(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])

        ids = [feature["input_ids"] for feature in features]
        return {
            "input_ids": rectangle(ids, self.pad_id),
            "attention_mask": rectangle([[1] * len(row) for row in ids], 0),
            "labels": rectangle([feature["labels"] for feature in features], IGNORED),
        }


#: Packed batches are filled up to a multiple of this many tokens. Matrix libraries keep a plan for every size that they have met:
#: over hundreds of different sizes that costs more memory and time than the filling.
MULTIPLE = 64


class PackedBatch:
    """Collates rows end to end.

    Returns (from a call): input_ids, position_ids and labels, each (1, T) for T tokens: those of all rows, then up to `MULTIPLE` - 1
    that belong to no row and carry no loss; `packed_rows` (rows, longest row), which token stands where in the rectangle of rows;
    `packed_tokens` (T,), where in the flattened rectangle each token stands (0, the first row's first token, for those of no row).
    """

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
        starts = lengths.cumsum(0) - lengths
        column = torch.arange(int(lengths.max()))
        inside = column < lengths[:, None]

        def filled(values: Tensor, fill: int) -> Tensor:
            return functional.pad(values, (0, -len(values) % MULTIPLE), value=fill)

        return {
            "input_ids": filled(torch.tensor([token for feature in features for token in feature["input_ids"]]), 0)[None],
            "labels": filled(torch.tensor([label for feature in features for label in feature["labels"]]), IGNORED)[None],
            "position_ids": filled(column.expand_as(inside)[inside], 0)[None],
            # beyond a row's end stands its first token again: causal attention never looks right, so nobody sees it
            "packed_rows": torch.where(inside, starts[:, None] + column, starts[:, None]),
            "packed_tokens": filled(inside.flatten().nonzero()[:, 0], 0),
        }


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: Tensor | None = None,
    packed_tokens: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row of a packed batch; an attention function in the sense of transformers' `AttentionInterface`.

    Args:
        query: (1, heads, T, head width); `key`, `value`: (1, key-value heads, T, head width).
        packed_rows, packed_tokens: as `PackedBatch` makes them.

    Returns:
        The output, (1, T, heads, head width), and no attention weights.

    Raises:
        TrainingError: the model caps its attention logits, which PyTorch's attention cannot do, or drops the layout on its way here.
    """
    if packed_rows is None or packed_tokens is None:
        raise TrainingError("this model's code does not hand packed rows on to its attention", where=WHERE, fix=FIX)
    if softcap is not None:
        raise TrainingError("this model caps its attention logits, which packing does not support", where=WHERE, fix=FIX)
    rows, longest = packed_rows.shape

    def by_row(states: Tensor) -> Tensor:  # (1, heads, T, width) -> (rows, heads, longest, width)
        heads, width = states.shape[1], states.shape[3]
        return states[0].index_select(1, packed_rows.flatten()).view(heads, rows, longest, width).transpose(0, 1)

    mask = None
    if sliding_window is not None and sliding_window < longest:
        position = torch.arange(longest, device=query.device)
        distance = position[:, None] - position
        mask = (distance >= 0) & (distance < sliding_window)
    output = functional.scaled_dot_product_attention(
        by_row(query),
        by_row(key),
        by_row(value),
        attn_mask=mask,
        dropout_p=dropout if module.training else 0.0,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    flat = output.transpose(1, 2).reshape(rows * longest, query.shape[1], query.shape[3])
    return flat.index_select(0, packed_tokens)[None], None


AttentionInterface.register(PACKED, packed_attention)


def prove_packing(model: PreTrainedModel, features: Sequence[Feature]) -> float:
    """Show on real rows that packing changes nothing beyond rounding, whatever the architecture does inside.

    Models that mix tokens outside attention (state-space and convolution layers) are found out here, before they learn from
    their neighbours: other tokens in the first row must not move a logit of the other rows. In the same layout most models
    compute the very same bits then; mixtures of experts group other tokens together, and may round differently.

    Args:
        model: with attention `PACKED`.
        features: a few rows of the training data.

    Returns:
        How far packing moved the logits of all rows from those of the same rows alone, as a share of their root mean square.

    Raises:
        TrainingError: the rows influence each other, or are computed otherwise than alone.
    """
    was_training = model.training
    model.eval()

    def logits(chosen: Sequence[Feature]) -> Tensor:
        batch = {name: tensor.to(model.device) for name, tensor in PackedBatch()(chosen).items() if name != "labels"}
        with torch.no_grad():
            return model(**batch, use_cache=False).logits[0, : sum(len(feature["input_ids"]) for feature in chosen)]

    vocabulary = model.get_input_embeddings().num_embeddings
    first, *others = features
    changed = {**first, "input_ids": [(token + 1) % vocabulary for token in first["input_ids"]]}
    try:
        together = logits(features)
        beside_another = logits([changed, *others])[len(first["input_ids"]) :]
        alone = torch.cat([logits([feature]) for feature in features])
    finally:
        model.train(was_training)
    tolerance = max(32 * torch.finfo(alone.dtype).eps, 1e-4)  # 0.25 in bfloat16; 30 layers of its rounding come to 0.02
    share = _share(together, alone, None)
    # Token by token: a convolution disturbs only the first few of a row, but by about their own size.
    leak = _share(beside_another, together[len(first["input_ids"]) :], -1) if others else 0.0
    if not max(leak, share) <= tolerance:
        raise TrainingError(
            f"rows packed together influence each other in this model: its logits move by {max(leak, share):.3g} of their own size",
            where=WHERE,
            fix=FIX,
        )
    return share


def _share(moved: Tensor, original: Tensor, per: int | None) -> float:
    """Largest |moved - original| / |original|, over the norms of single tokens (`per` -1) or of everything (None)."""
    return (torch.norm((moved - original).float(), dim=per) / torch.norm(original.float(), dim=per)).max().item()
