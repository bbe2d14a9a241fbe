from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.loaded import logprobs, tiny
from workbench.data.example import Example
from workbench.data.render import Renderer
from workbench.errors import EvaluationError
from workbench.evaluation import outcomes
from workbench.evaluation.answer import answer, batches
from workbench.evaluation.metrics import scorer
from workbench.evaluation.metrics.perplexity import perplexity_score
from workbench.recipe.schema import Task

#: Every metric, with a reference that it can read.
METRICS: dict[str, tuple[dict[str, Any], str]] = {
    "label": {"labels": ["yes", "no"]},
    "exact_match": {},
    "numeric": {},
    "contains": {},
    "regex": {"pattern": "([a-z]+)"},
    "json_f1": {},
    "json_exact": {},
    "rouge_l": {},
    "chrf": {},
    "perplexity": {},
    "function": {"function": "grades:grade"},
}  # type: ignore[assignment]
REFERENCES = {"label": "yes", "numeric": "12", "json_f1": '{"a": 1}', "json_exact": '{"a": 1}'}


def ask(
    examples: Sequence[Example], task: Task, *, base: Path = Path(), batch_tokens: int = 64
) -> tuple[list[dict[str, Any]], list[float]]:
    """The rows, and what progress was told."""
    model, tokenizer = tiny()
    told: list[float] = []
    rows = answer(
        model,
        Renderer(tokenizer, task),
        examples,
        task,
        scorer(task, base=base),
        batch_tokens=batch_tokens,
        advance=lambda done, note="", /: told.append(done),
    )
    return rows, told


def examples_for(reference: str) -> list[Example]:
    """Prompts of very different lengths, neither sorted nor reversed."""
    return [
        Example(f"{number} {'word ' * (number * 7 % 11)}", (reference, reference), {"number": number}, f"f, row {number}")
        for number in range(1, 9)
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: str, tmp_path: Path) -> None:
    (tmp_path / "grades.py").write_text(
        "def grade(output, reference, metadata):\n    return None if metadata['number'] == 3 else metadata['number'] / 10\n"
    )
    reference = REFERENCES.get(metric, "an answer")
    task = Task(metric=metric, max_new_tokens=6, **METRICS[metric])  # type: ignore[arg-type]
    examples = examples_for(reference)
    if metric == "label":
        examples = [Example(e.prompt, (reference,), e.metadata, e.where) for e in examples]
    rows, told = ask(examples, task, base=tmp_path)
    renderer = Renderer(tiny()[1], task)
    assert told[-1] == len(examples) and told == sorted(told) and len(told) > 1
    for example, row in zip(examples, rows, strict=True):
        assert (row["example_id"], row["prompt"], row["metadata"]) == (example.id, example.prompt, example.metadata)
        assert row["reference"] == reference and row["simulated"] is False
        assert row["input_tokens"] == len(renderer.prompt_ids(example)) and row["latency_s"] > 0
        assert row["logprob_min"] <= row["logprob_mean"] <= 0 and row["margin_min"] >= 0
        assert (row["label_prob"] is not None) == (metric == "label") and (row["output"] is None) == (metric == "perplexity")
        if metric == "perplexity":
            assert row["output_tokens"] == len(renderer.answer_ids(example))
            assert row["score"] == pytest.approx(math.exp(row["logprob_mean"]))
        elif metric == "label":
            assert row["score"] == float(row["output"] == "yes") and row["valid"] and row["error"] is None
        else:
            assert 1 <= row["output_tokens"] <= 6
            again = scorer(task, base=tmp_path).score(row["output"], example.references, example.metadata)
            assert (row["score"], row["valid"], row["error"]) == (again.value, again.valid, again.reason)
    table = outcomes.from_rows([{**row, "candidate": "tiny", "split": "test"} for row in rows])
    statuses = table["status"].to_pylist()
    assert statuses == (["scored"] * 2 + ["unscored"] + ["scored"] * 5 if metric == "function" else ["scored"] * 8)
    if metric == "function":
        assert rows[2]["score"] is None and rows[2]["error"]


def test_perplexity_is_that_of_the_reference() -> None:
    task = Task(metric="perplexity")
    model, tokenizer = tiny()
    renderer, examples = Renderer(tokenizer, task), examples_for("Paris.")
    rows, _ = ask(examples, task)
    for example, row in zip(examples, rows, strict=True):
        prompt, said = renderer.prompt_ids(example), renderer.answer_ids(example)
        own = logprobs(model, [*prompt, *said])[len(prompt) - 1 : -1]
        mean = sum(float(line[token]) for line, token in zip(own, said, strict=True)) / len(said)
        assert row["score"] == pytest.approx(perplexity_score(mean), rel=1e-3)


@pytest.mark.parametrize("metric", ["label", "exact_match", "perplexity"])
def test_the_budget_changes_no_answer(metric: str) -> None:
    task = Task(metric=metric, max_new_tokens=5, **METRICS[metric])  # type: ignore[arg-type]
    examples = [Example(e.prompt, ("yes",), e.metadata, e.where) for e in examples_for("yes")]
    whole, told = ask(examples, task, batch_tokens=100_000)
    assert told == [8]
    for budget in (1, 40, 90):
        rows, _ = ask(examples, task, batch_tokens=budget)
        for one, other in zip(rows, whole, strict=True):
            assert (one["example_id"], one["output"], one["score"]) == (other["example_id"], other["output"], pytest.approx(other["score"]))
            assert one["logprob_mean"] == pytest.approx(other["logprob_mean"], abs=1e-3)


def test_chat_prompts_are_kept_as_json() -> None:
    messages = ({"role": "user", "content": "Zürich?"},)
    ((row,), _) = ask([Example(messages, ("yes",))], Task(metric="exact_match", max_new_tokens=1))
    assert json.loads(row["prompt"]) == list(messages) and "ü" in row["prompt"]


def test_no_examples() -> None:
    for metric in ("label", "exact_match", "perplexity"):
        assert ask([], Task(metric=metric, **METRICS[metric])) == ([], [])  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "fits"), [("exact_match", 502), ("perplexity", 510), ("label", 512)])
def test_what_does_not_fit_the_context_is_refused(metric: str, fits: int) -> None:
    """The tiny model reads 512 tokens; the answer is 10 generated tokens, " 0" and its end, or a label that needs no room."""
    keys: dict[str, Any] = {"labels": ["0", "1"]} if metric == "label" else {"max_new_tokens": 10}
    task = Task(metric=metric, **keys)  # type: ignore[arg-type]
    answer_tokens = len(Renderer(tiny()[1], task).answer_ids(Example("x ", ("0",))))
    assert answer_tokens == 2

    def row(tokens: int) -> Example:
        return Example("\x00" * (tokens - 1) + "\n", ("0",), {}, f"f, {tokens} tokens")

    assert len(Renderer(tiny()[1], task).prompt_ids(row(fits))) == fits
    rows, _ = ask([row(3), row(fits)], task)
    assert [one["input_tokens"] for one in rows] == [3, fits]
    with pytest.raises(EvaluationError) as caught:
        ask([row(3), row(fits + 1), row(4)], task)
    assert caught.value.where == f"f, {fits + 1} tokens" and "context of 512" in str(caught.value)


def test_branches_of_a_label_tree_share_positions() -> None:
    """80 labels are hundreds of tokens to compute, but the longest label alone decides what fits."""
    labels = [f"{number} intent" for number in range(10, 90)]
    examples = [Example("\x00" * 480 + "\n", (labels[0],))]
    ((row,), _) = ask(examples, Task(metric="label", labels=labels))
    assert row["output"] in labels


@given(lengths=st.lists(st.integers(1, 60), max_size=50), budget=st.integers(1, 300))
def test_batches(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    sizes = [[lengths[index] for index in batch] for batch in found]
    assert [length for batch in sizes for length in batch] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * batch[0] <= budget for batch in sizes)
    assert all((len(batch) + 1) * batch[0] > budget for batch in sizes[:-1]), "one more would have fitted"
