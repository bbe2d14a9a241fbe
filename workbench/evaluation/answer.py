"""One candidate answers examples: rows of the outcomes table, in the order of the examples.

How depends on the metric: labels are compared by probability, perplexity reads the reference, everything else is generated greedily.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.data.example import Example
from workbench.data.render import Renderer
from workbench.errors import EvaluationError
from workbench.evaluation.generate import generate
from workbench.evaluation.labels import LabelTree, score_labels
from workbench.evaluation.metrics import Scorer
from workbench.evaluation.metrics.perplexity import perplexity_score
from workbench.evaluation.reference import read_references
from workbench.evaluation.reply import Reply
from workbench.progress import Advance
from workbench.recipe.schema import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answer(
    model: PreTrainedModel,
    renderer: Renderer,
    examples: Sequence[Example],
    task: Task,
    metric: Scorer,
    *,
    batch_tokens: int,
    advance: Advance,
) -> list[dict[str, Any]]:
    """Let a model answer examples and score what it says.

    Args:
        renderer: with the model's own tokenizer.
        metric: what `metrics.scorer` made of `task`.
        batch_tokens: most tokens, padding included, in one forward pass; a single longer row still goes through alone.
        advance: told the number of examples answered.

    Returns:
        One row of the outcomes table for each example; `candidate` and `split` are left to the caller. `latency_s` is the time of
        the batch that the example was in.

    Raises:
        EvaluationError: a prompt and its answer do not fit into the model's context.
    """
    prompts = [renderer.prompt_ids(example) for example in examples]
    method = _method(model, renderer, examples, prompts, task)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ends = [len(prompt) + reach for prompt, reach in zip(prompts, method.reach, strict=True)]
    longest = max(range(len(ends)), key=ends.__getitem__, default=0)
    if ends and context is not None and ends[longest] > context:
        prompt, reach = len(prompts[longest]), method.reach[longest]
        raise EvaluationError(
            f"a prompt of {prompt} tokens and an answer of {reach} do not fit into the model's context of {context}",
            where=examples[longest].where,
            fix="shorten the prompt, lower task.max_new_tokens, or use a model with a longer context",
        )
    rows: list[dict[str, Any]] = [{} for _ in examples]
    done = 0
    for batch in batches([len(prompt) + room for prompt, room in zip(prompts, method.room, strict=True)], batch_tokens):
        started = time.perf_counter()
        answers = method.ask(batch)
        seconds = time.perf_counter() - started
        for index, said in zip(batch, answers, strict=True):
            rows[index] = _row(examples[index], prompts[index], said, seconds, task, metric)
        done += len(batch)
        advance(done, "")
    return rows


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in order of length, longest first, cut so that rows x longest <= budget; at least one row each.

    Longest first, so that memory that runs out does so at once and not at the end.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class _Method:
    """How examples are answered.

    Attributes:
        ask: answers a batch of example indices.
        room: for each example, the tokens that are computed after its prompt.
        reach: for each example, how far beyond its prompt the last position lies; branches of a label tree share positions.
    """

    ask: Callable[[Sequence[int]], list[Reply]]
    room: Sequence[int]
    reach: Sequence[int]


def _method(
    model: PreTrainedModel, renderer: Renderer, examples: Sequence[Example], prompts: Sequence[Sequence[int]], task: Task
) -> _Method:
    if task.metric == "label":
        by_ending = {space: LabelTree(renderer, example, task.labels or []) for space, example in _by_ending(examples).items()}
        depths = {space: max(tree.depths, default=-1) + 1 for space, tree in by_ending.items()}
        endings = [_ending(example) for example in examples]
        trees = [by_ending[ending] for ending in endings]

        def ask_labels(batch: Sequence[int]) -> list[Reply]:
            return score_labels(model, [prompts[i] for i in batch], [trees[i] for i in batch], renderer.tokenizer.pad_token_id)

        return _Method(ask_labels, [tree.size for tree in trees], [depths[ending] for ending in endings])
    if task.metric == "perplexity":
        answers = [renderer.answer_ids(example) for example in examples]

        def ask_references(batch: Sequence[int]) -> list[Reply]:
            return read_references(model, [prompts[i] for i in batch], [answers[i] for i in batch], renderer.tokenizer.pad_token_id)

        sizes = [len(ids) for ids in answers]
        return _Method(ask_references, sizes, sizes)

    def ask(batch: Sequence[int]) -> list[Reply]:
        return generate(
            model,
            renderer.tokenizer,
            [prompts[i] for i in batch],
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            eos_ids=renderer.eos_ids,
        )

    sizes = [task.max_new_tokens] * len(examples)
    return _Method(ask, sizes, sizes)


def _by_ending(examples: Sequence[Example]) -> dict[bool, Example]:
    """One example for each way in which an answer can be joined to its prompt."""
    found: dict[bool, Example] = {}
    for example in examples:
        found.setdefault(_ending(example), example)
    return found


def _ending(example: Example) -> bool:
    """Whether a raw prompt ends in white space, which decides whether a space comes before the answer."""
    return isinstance(example.prompt, str) and example.prompt[-1:].isspace()


def _row(example: Example, prompt: Sequence[int], said: Reply, seconds: float, task: Task, metric: Scorer) -> dict[str, Any]:
    mean = sum(said.logprobs) / len(said.logprobs) if said.logprobs else None
    row = {
        "example_id": example.id,
        "prompt": example.prompt if isinstance(example.prompt, str) else json.dumps(example.prompt, ensure_ascii=False),
        "output": said.text,
        "reference": example.references[0],
        "input_tokens": len(prompt),
        "output_tokens": said.tokens,
        "latency_s": seconds,
        "logprob_mean": mean,
        "logprob_min": min(said.logprobs, default=None),
        "margin_min": said.margin,
        "label_prob": said.label_prob,
        "metadata": example.metadata,
        "simulated": False,
    }
    if task.metric == "perplexity":
        return {**row, "score": None if mean is None else perplexity_score(mean)}
    score = metric.score(said.text or "", example.references, example.metadata)
    return {**row, "score": score.value, "valid": score.valid, "error": score.reason}
