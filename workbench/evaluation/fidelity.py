"""How closely a quantised copy follows its parent: perplexity and Kullback-Leibler divergence on the rows of the task.

A task score moves only when an answer flips. The divergence of the next-token distributions sees what has not flipped yet (Dutta et al.
2024, "Accuracy is Not All You Need", arXiv 2407.09141).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div

from workbench.data.example import Example
from workbench.data.render import Renderer
from workbench.errors import EvaluationError
from workbench.evaluation.answer import batches
from workbench.progress import Advance

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Logits (positions x vocabulary) of one forward pass: 64 MB in bfloat16, for each of the two models.
PASS_LOGITS = 1 << 25
#: Logits that are turned into float32 log-probabilities at once: 32 MB, a handful of times.
SLICE_LOGITS = 1 << 23


@dataclass(frozen=True)
class Fidelity:
    """A variant beside its parent, on the same tokens.

    Attributes:
        perplexity, parent_perplexity: exp of the mean negative log-probability of the reference answers' tokens, up to and including
            the end-of-sequence token; a mean over tokens, not over rows.
        kl_mean, kl_max: KL(parent || variant) in nats at the positions that predict these tokens, over the full vocabulary.
        same_top_token: share of these positions, 0 to 1, at which both models find the same token most likely.
        text_perplexity, parent_text_perplexity, text_kl_mean: the same for all tokens of a row but the first, prompt included.
        tokens, text_tokens: how many tokens that were.
        rows: examples read.
    """

    perplexity: float
    parent_perplexity: float
    kl_mean: float
    kl_max: float
    same_top_token: float
    text_perplexity: float
    parent_text_perplexity: float
    text_kl_mean: float
    tokens: int
    text_tokens: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    parent: PreTrainedModel | PeftModel,
    variant: PreTrainedModel | PeftModel,
    renderer: Renderer,
    examples: Sequence[Example],
    *,
    batch_tokens: int,
    advance: Advance,
) -> Fidelity:
    """Let both models read prompts and reference answers, as evaluation renders them.

    Logits come in the models' own precision; everything after that is float32, and the sums are float64.

    Args:
        parent, variant: loaded, in eval mode, each on its device; of one vocabulary.
        renderer: with the tokenizer of both.
        batch_tokens: most tokens, padding included, in one forward pass; fewer where the logits would take too much memory. A longer
            row goes through in pieces, joined by the models' caches.
        advance: told the number of examples read.

    Raises:
        EvaluationError: no examples, a row that does not fit into the context, models of different vocabularies, or log-probabilities
            that are not finite, which is what a variant that its kernels cannot run gives.
    """
    prompts = [renderer.prompt_ids(example) for example in examples]
    answers = [renderer.answer_ids(example) for example in examples]
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    vocabulary = _check(parent, variant, rows, examples)
    step = max(1, min(batch_tokens, PASS_LOGITS // vocabulary))
    readings, done = [], 0
    with torch.inference_mode():
        for batch in batches([len(row) for row in rows], step):
            readings += _read(parent, variant, [rows[i] for i in batch], [len(answers[i]) for i in batch], renderer, step)
            done += len(batch)
            advance(done)
    text = torch.cat(readings).double()
    answer = text[text[:, _ANSWER] == 1]
    return Fidelity(
        perplexity=_perplexity(answer[:, _VARIANT]),
        parent_perplexity=_perplexity(answer[:, _PARENT]),
        kl_mean=answer[:, _KL].mean().item(),
        kl_max=answer[:, _KL].max().item(),
        same_top_token=answer[:, _SAME].mean().item(),
        text_perplexity=_perplexity(text[:, _VARIANT]),
        parent_text_perplexity=_perplexity(text[:, _PARENT]),
        text_kl_mean=text[:, _KL].mean().item(),
        tokens=len(answer),
        text_tokens=len(text),
        rows=len(rows),
    )


#: Columns of what is noted for each position: log-probability of the token that follows, KL, same top token, token of an answer.
_PARENT, _VARIANT, _KL, _SAME, _ANSWER = range(5)


def _check(
    parent: PreTrainedModel | PeftModel, variant: PreTrainedModel | PeftModel, rows: Sequence[Sequence[int]], examples: Sequence[Example]
) -> int:
    """The size of the vocabulary, once it is clear that both models can read the rows."""
    if not rows:
        raise EvaluationError("there are no examples to compare two models on", fix="give at least one")
    config, other = parent.config.get_text_config(), variant.config.get_text_config()
    if config.vocab_size != other.vocab_size:
        raise EvaluationError(
            f"the parent has a vocabulary of {config.vocab_size} and the variant one of {other.vocab_size}",
            fix="compare a variant with its own parent",
        )
    context = getattr(config, "max_position_embeddings", None)
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    if context is not None and len(rows[longest]) > context:
        raise EvaluationError(
            f"a prompt and its reference answer have {len(rows[longest])} tokens, and the model's context is {context}",
            where=examples[longest].where,
            fix="shorten the row, or use a model with a longer context",
        )
    return int(config.vocab_size)


def _read(
    parent: PreTrainedModel | PeftModel,
    variant: PreTrainedModel | PeftModel,
    rows: Sequence[Sequence[int]],
    answers: Sequence[int],
    renderer: Renderer,
    step: int,
) -> list[torch.Tensor]:
    """What both models find at each position of some rows that predicts a token.

    Args:
        rows: token ids; padded on the left to the longest, T.
        answers: for each row, how many tokens at its end are the answer.
        step: positions of a row that go through the models at once.

    Returns:
        Tensors (positions, 5) in float32 on the CPU; see the columns' names.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[renderer.tokenizer.pad_token_id] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    of_answer = torch.arange(1, longest) >= longest - torch.tensor(answers)[:, None]
    ids, following, mask = ids[:, :-1], ids[:, 1:], mask[:, :-1]  # the last token predicts nothing
    found = []
    pieces = zip(_logits(parent, ids, mask, step), _logits(variant, ids, mask, step), strict=True)
    for start, (theirs, own) in zip(range(0, longest - 1, step), pieces, strict=True):
        piece = slice(start, start + step)
        predicts = mask[:, piece].flatten().nonzero()[:, 0]
        for some in predicts.split(max(1, SLICE_LOGITS // theirs.shape[-1])):
            p, q = (_logprobs(logits, some, name) for logits, name in ((theirs, "parent"), (own, "variant")))
            p = p.to(q.device)
            next_token = following[:, piece].flatten()[some].to(q.device)[:, None]
            columns = [p.gather(-1, next_token)[:, 0], q.gather(-1, next_token)[:, 0]]
            columns.append(kl_div(q, p, log_target=True, reduction="none").sum(-1).clamp(min=0))  # below 0 by rounding only
            columns.append((p.argmax(-1) == q.argmax(-1)).float())
            columns.append(of_answer[:, piece].flatten()[some].to(q.device).float())
            found.append(torch.stack(columns, dim=1).cpu())
    return found


def _logits(model: PreTrainedModel | PeftModel, ids: torch.Tensor, mask: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
    """Logits (rows, up to `step`, vocabulary) for one piece of the positions after the other."""
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = None
    for start in range(0, ids.shape[1], step):
        end = start + step
        output = model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=step < ids.shape[1],
        )
        cache = output.past_key_values
        yield output.logits


def _logprobs(logits: torch.Tensor, positions: torch.Tensor, whose: str) -> torch.Tensor:
    """(positions, vocabulary) in float32."""
    found = logits.flatten(0, 1)[positions.to(logits.device)].float().log_softmax(-1)
    if not found.isfinite().all():
        raise _not_finite(f"the {whose}'s log-probabilities")
    return found


def _perplexity(logprobs: torch.Tensor) -> float:
    perplexity = (-logprobs.mean()).exp().item()
    if not math.isfinite(perplexity):
        raise _not_finite("a perplexity")
    return perplexity


def _not_finite(what: str) -> EvaluationError:
    return EvaluationError(f"{what} cannot be told: not a finite number", fix="the weights are damaged, or no kernel here can run them")
