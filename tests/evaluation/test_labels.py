from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.support.loaded import logprobs, tiny
from workbench.data.example import Example
from workbench.data.render import Renderer
from workbench.evaluation import labels as module
from workbench.evaluation.labels import LabelTree, score_labels
from workbench.evaluation.reply import Reply
from workbench.recipe.schema import Task

#: Few letters, so that labels share beginnings and begin one another.
WORDS = st.text("ab_ c", min_size=1, max_size=8).filter(lambda text: text == text.strip() and bool(text))
PROMPTS = st.lists(st.text("xyz .", min_size=1, max_size=40), min_size=1, max_size=4)
NEAR = 2e-4  # of a log-probability, in float32


def renderer(*, chat: bool = False) -> Renderer:
    return Renderer(tiny()[1], Task(metric="exact_match", chat=chat))


def paths(render: Renderer, example: Example, labels: Sequence[str]) -> list[list[int]]:
    """Tokens of each label; with the end-of-sequence token of all of them, if one label begins another."""
    whole = [render.answer_ids(example, label) for label in labels]
    bare = [ids[:-1] for ids in whole]
    begins = any(a != b and b[: len(a)] == a for a in bare for b in bare)
    return whole if begins else bare


def brute_force(model: PreTrainedModel, render: Renderer, example: Example, labels: Sequence[str]) -> list[list[float]]:
    """Log-probability of every token of every label, each label read by itself after its prompt."""
    prompt, found = render.prompt_ids(example), []
    for path in paths(render, example, labels):
        rows = logprobs(model, [*prompt, *path])[len(prompt) - 1 : -1]
        found.append(rows.gather(1, torch.tensor(path)[:, None])[:, 0].tolist())
    return found


def ask(model: PreTrainedModel, render: Renderer, examples: Sequence[Example], labels: Sequence[str]) -> list[Reply]:
    tree = LabelTree(render, examples[0], labels)
    return score_labels(model, [render.prompt_ids(e) for e in examples], [tree] * len(examples), render.tokenizer.pad_token_id)


def check(reply: Reply, labels: Sequence[str], expected: list[list[float]]) -> None:
    totals = torch.tensor([sum(one) for one in expected], dtype=torch.float64)
    best, second = totals.topk(2).values.tolist()
    index = labels.index(str(reply.text))
    assert totals[index] == pytest.approx(best, abs=NEAR)
    assert reply.logprobs == pytest.approx(tuple(expected[index]), abs=NEAR) and reply.tokens == len(expected[index])
    assert reply.margin == pytest.approx(best - second, abs=2 * NEAR)
    assert reply.label_prob == pytest.approx(totals.softmax(0)[index].item(), abs=NEAR)


@settings(deadline=None, max_examples=60)
@given(labels=st.lists(WORDS, min_size=2, max_size=12, unique=True), prompts=PROMPTS, chat=st.booleans())
def test_one_pass_equals_reading_every_label_by_itself(labels: list[str], prompts: list[str], chat: bool) -> None:
    model, render = tiny()[0], renderer(chat=chat)
    examples = [Example(prompt.strip() + ":", (labels[0],)) for prompt in prompts]
    for example, reply in zip(examples, ask(model, render, examples, labels), strict=True):
        check(reply, labels, brute_force(model, render, example, labels))


@pytest.mark.parametrize(
    "labels",
    [
        ["0", "1"],
        ["yes", "no", "maybe"],
        ["card", "card_fee", "card_fee_charged"],
        ["a" * n for n in range(1, 9)],
        [f"intent_{n // 9}_{'x' * (n % 5)}{n}" for n in range(80)],
    ],
    ids=["single tokens", "words", "one begins another", "a chain", "80"],
)
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_label_sets(labels: list[str], chat: bool) -> None:
    model, render = tiny()[0], renderer(chat=chat)
    examples = [Example("What is the capital of France?", (labels[0],)), Example("No", (labels[0],))]
    for example, reply in zip(examples, ask(model, render, examples, labels), strict=True):
        check(reply, labels, brute_force(model, render, example, labels))


def test_single_token_labels_add_nothing_to_the_pass() -> None:
    render = renderer()
    tree = LabelTree(render, Example("Sarcastic: ", ("0",)), ["0", "1"])
    assert (tree.size, tree.depths, tree.edges) == (
        0,
        [],
        [[(-1, token)] for token in render.tokenizer(["0", "1"])["input_ids"] for token in token],
    )


def test_a_shared_beginning_is_read_once() -> None:
    tree = LabelTree(renderer(), Example("x ", ("",)), ["aaaa", "aaab", "aaba"])
    paths = {label: [token for _, token in edges] for label, edges in zip(tree.labels, tree.edges, strict=True)}
    inner = {tuple(path[:depth]) for path in paths.values() for depth in range(1, len(path))}
    assert tree.size == len(inner)


@settings(deadline=None, max_examples=20)
@given(prompts=st.lists(st.text("xyz .", min_size=1, max_size=60), min_size=2, max_size=7))
def test_the_batch_does_not_matter(prompts: list[str]) -> None:
    model, render, labels = tiny()[0], renderer(), ["card", "card_fee", "cash", "top up"]
    examples = [Example(prompt + ":", ("card",)) for prompt in prompts]
    together = ask(model, render, examples, labels)
    alone = [ask(model, render, [example], labels)[0] for example in examples]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=NEAR) or one.margin == pytest.approx(0, abs=NEAR)
        assert one.label_prob == pytest.approx(other.label_prob, abs=NEAR)


def test_logits_are_cut_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model, render, labels = tiny()[0], renderer(), ["card", "card_fee", "cash"]
    examples = [Example("x" * n + ":", ("card",)) for n in range(1, 8)]
    whole = ask(model, render, examples, labels)
    size = LabelTree(render, examples[0], labels).size
    monkeypatch.setattr(module, "LOGIT_BYTES", 3 * (size + 1) * model.config.vocab_size * 4 + 1)
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    try:
        cut = ask(model, render, examples, labels)
        assert seen == [3, 3, 1]
        monkeypatch.setattr(module, "LOGIT_BYTES", 1)  # less than one row: a row at a time
        assert [reply.text for reply in ask(model, render, examples, labels)] == [reply.text for reply in whole]
        assert seen[3:] == [1] * 7
    finally:
        hook.remove()
    for one, other in zip(cut, whole, strict=True):
        assert one.text == other.text and one.logprobs == pytest.approx(other.logprobs, abs=NEAR)


def test_prompts_may_have_different_trees() -> None:
    model, render, labels = tiny()[0], renderer(), ["yes", "no"]
    examples = [Example("Right? ", ("yes",)), Example("Right?", ("yes",)), Example("Sure? ", ("yes",))]
    trees = {ending: LabelTree(render, next(e for e in examples if e.prompt.endswith(" ") == ending), labels) for ending in (True, False)}
    assert trees[True].edges != trees[False].edges, "with and without a space before the label"
    prompts = [render.prompt_ids(e) for e in examples]
    replies = score_labels(model, prompts, [trees[str(e.prompt).endswith(" ")] for e in examples], render.tokenizer.pad_token_id)
    for example, reply in zip(examples, replies, strict=True):
        check(reply, labels, brute_force(model, render, example, labels))


def test_every_attention_implementation_gives_the_same() -> None:
    model, render, labels = tiny()[0], renderer(), ["card", "card_fee", "cash"]
    examples = [Example("What is it?", ("card",)), Example("It", ("card",))]
    expected = ask(model, render, examples, labels)
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        found = ask(model, render, examples, labels)
    finally:
        model.set_attn_implementation(own)
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text and one.logprobs == pytest.approx(other.logprobs, abs=NEAR)
