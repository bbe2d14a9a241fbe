"""Label tasks: the probability of every label's whole token sequence, exactly as rendered, in one forward pass.

The labels form a tree of tokens. The prompt is followed by the tree's inner tokens, each of which attends to the prompt and to its
own ancestors only; the last token of a label needs no place, its probability is read at its parent (tree attention: Miao et al.
2024, SpecInfer, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from workbench.data.example import Example
from workbench.data.render import Renderer
from workbench.evaluation.reply import Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Most bytes of logits in one pass; larger batches are cut.
LOGIT_BYTES = 512 * 2**20


class LabelTree:
    """The token tree of a label set after a prompt.

    Args:
        example: any example; labels are rendered as answers to it.
        labels: the texts.

    Attributes:
        labels: the texts, in the recipe's order.
        tokens: token ids of the inner nodes, parents before children.
        parents: for each inner node its parent's number, -1 for the end of the prompt.
        edges: for each label, (node number or -1, token id) of every token of it.
    """

    def __init__(self, renderer: Renderer, example: Example, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        paths = [tuple(renderer.label_ids(example, label)) for label in labels]
        if any(one != other and other[: len(one)] == one for one in paths for other in paths):
            # "card" against "card_fee": without its end the shorter label would always be at least as likely
            paths = [(*path, renderer.tokenizer.eos_token_id) for path in paths]
        self.tokens: list[int] = []
        self.parents: list[int] = []
        numbers: dict[tuple[int, ...], int] = {(): -1}
        for path in sorted(paths):
            for depth in range(1, len(path)):
                if path[:depth] not in numbers:
                    numbers[path[:depth]] = len(self.tokens)
                    self.tokens.append(path[depth - 1])
                    self.parents.append(numbers[path[: depth - 1]])
        self.edges = [[(numbers[path[:depth]], path[depth]) for depth in range(len(path))] for path in paths]

    @property
    def size(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.tokens)

    @property
    def depths(self) -> list[int]:
        """Distance of each inner node from the end of the prompt, from 0."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def visible(self) -> torch.Tensor:
        """(size, size), bool: which inner node attends to which."""
        seen = torch.eye(self.size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def score_labels(model: PreTrainedModel, prompts: Sequence[Sequence[int]], trees: Sequence[LabelTree], pad_id: int) -> list[Reply]:
    """The most probable label for each prompt.

    Args:
        prompts: token ids.
        trees: the label tree of each prompt; few distinct ones.

    Returns:
        Replies whose `logprobs` are those of the chosen label's tokens, `margin` is the difference to the second best label's
        log-probability, and `label_prob` is the chosen label's share of the probability of all labels.
    """
    answers: dict[int, Reply] = {}
    for tree in set(trees):
        chosen = [index for index, own in enumerate(trees) if own is tree]
        step = max(1, LOGIT_BYTES // ((tree.size + 1) * model.config.get_text_config().vocab_size * 4))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            answers |= dict(zip(part, _score(model, [prompts[index] for index in part], tree, pad_id), strict=True))
    return [answers[index] for index in range(len(prompts))]


def _score(model: PreTrainedModel, prompts: Sequence[Sequence[int]], tree: LabelTree, pad_id: int) -> list[Reply]:
    logprobs = edge_logprobs(model, prompts, tree, pad_id)
    answers = []
    for row in logprobs:
        by_label = [[row[edge] for edge in path] for path in tree.edges]
        totals = torch.tensor([sum(path) for path in by_label], dtype=torch.float64)
        best, second = totals.topk(2).values.tolist()
        index = int(totals.argmax())
        share = totals.softmax(0)[index].item()
        answers.append(Reply(tree.labels[index], len(tree.edges[index]), tuple(by_label[index]), best - second, share))
    return answers


def edge_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], tree: LabelTree, pad_id: int
) -> list[dict[tuple[int, int], float]]:
    """For each prompt the natural log-probability of every (node, token) edge of the tree."""
    longest, extra = max(map(len, prompts)), tree.size
    ids = torch.full((len(prompts), longest + extra), pad_id)
    positions = torch.zeros_like(ids)
    mask = torch.zeros(len(prompts), 1, longest + extra, longest + extra, dtype=torch.bool)
    mask[:] = torch.eye(longest + extra, dtype=torch.bool)  # padding looks at itself, or its softmax would be 0/0
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    for row, prompt in enumerate(prompts):
        pad = longest - len(prompt)
        ids[row, pad:] = torch.tensor([*prompt, *tree.tokens])
        positions[row, pad:] = torch.tensor([*range(len(prompt)), *(len(prompt) + depth for depth in tree.depths)])
        mask[row, 0, pad:longest, pad:longest] = causal[pad:, pad:]
        mask[row, 0, longest:, pad:longest] = True
        mask[row, 0, longest:, longest:] = tree.visible
    hidden = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    with torch.inference_mode():
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=hidden.to(model.device),  # to be added: eager attention would add a boolean mask as 0 and 1
            position_ids=positions.to(model.device),
            use_cache=False,
            logits_to_keep=extra + 1,
        ).logits.float()
        edges = sorted({edge for path in tree.edges for edge in path})
        nodes = torch.tensor([node + 1 for node, _ in edges], device=logits.device)
        tokens = torch.tensor([token for _, token in edges], device=logits.device)
        values = (logits[:, nodes, tokens] - logits.logsumexp(-1)[:, nodes]).cpu().tolist()
    return [dict(zip(edges, row, strict=True)) for row in values]
