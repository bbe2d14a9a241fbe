from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedModel

from tests.support.loaded import logprobs, spread, tiny
from tests.support.tiny import make_model
from workbench.evaluation.generate import generate
from workbench.evaluation.reply import Reply
from workbench.models.load import load_model

NEAR = 5e-4
PROMPTS = st.lists(st.lists(st.integers(2, 511), min_size=1, max_size=20), min_size=1, max_size=5)
PROMPT = [40, 41, 42, 43]
#: Everything in a generation_config.json that could make another token the greedy one, or another length the right one.
SHIPPED = {
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.5,
    "top_k": 3,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 9,
    "suppress_tokens": list(range(100, 400)),
    "max_length": 30,
    "num_beams": 3,
}


def ask(prompts: Sequence[Sequence[int]], *, limit: int = 12, stop: Sequence[str] = (), ends: Collection[int] = (1,)) -> list[Reply]:
    model, tokenizer = tiny()
    return generate(model, tokenizer, prompts, max_new_tokens=limit, stop=stop, eos_ids=ends)


def greedy(model: PreTrainedModel, prompt: Sequence[int], limit: int, ends: Collection[int] = (1,)) -> list[int]:
    """The plain definition: the whole text again for each token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit and (len(tokens) == len(prompt) or tokens[-1] not in ends):
        tokens.append(int(logprobs(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def check(reply: Reply, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Log-probabilities and margin of `tokens`, read again in one forward pass."""
    rows = logprobs(tiny()[0], [*prompt, *tokens])[len(prompt) - 1 : -1]
    best = rows.topk(2).values
    assert reply.tokens == len(tokens) == len(reply.logprobs)
    assert reply.logprobs == pytest.approx([float(row[token]) for row, token in zip(rows, tokens, strict=True)], abs=NEAR)
    assert reply.margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=NEAR)


@settings(deadline=None, max_examples=25)
@given(prompts=PROMPTS)
def test_a_batch_equals_the_definition_of_greedy(prompts: list[list[int]]) -> None:
    model, tokenizer = tiny()
    for prompt, reply in zip(prompts, ask(prompts), strict=True):
        tokens = greedy(model, prompt, 12)
        check(reply, prompt, tokens)
        assert reply.text == tokenizer.decode([token for token in tokens if token != 1], skip_special_tokens=True).strip()


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_limit(limit: int) -> None:
    (reply,) = ask([PROMPT], limit=limit)
    check(reply, PROMPT, greedy(tiny()[0], PROMPT, limit))
    assert reply.tokens == limit


def test_an_end_as_the_first_token() -> None:
    model, tokenizer = tiny()
    others = [50, 51, 52, 53, 54, 55]
    end = greedy(model, PROMPT, 1)[0]
    assert end not in greedy(model, others, 6)
    ended, went_on = ask([PROMPT, others], limit=6, ends=[end])
    assert ended.text == ""
    check(ended, PROMPT, [end])
    assert went_on.text == tokenizer.decode(greedy(model, others, 6)).strip()


def test_the_models_own_ends_count_too() -> None:
    model, _ = tiny()
    tokens = greedy(model, PROMPT, 12)
    later = next(position for position, token in enumerate(tokens) if token != tokens[0])
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=[1, tokens[later]])
    try:
        (reply,) = ask([PROMPT])
    finally:
        model.generation_config = own
    check(reply, PROMPT, tokens[: later + 1])


def test_stop_strings() -> None:
    """Every piece of what the model says, inside a token or across tokens, ends the answer before its first occurrence."""
    model, tokenizer = tiny()
    others = [50, 51, 52]
    free, other = greedy(model, PROMPT, 10), greedy(model, others, 10)
    text, other_text = tokenizer.decode(free), tokenizer.decode(other)
    whole = [len(tokenizer.decode(free[:n])) for n in range(11)]
    across = 0
    for start in range(len(text)):
        for length in (1, 2, 5):
            stop = text[start : start + length]
            if len(stop) < length or "\ufffd" in stop or stop in other_text:
                continue
            said, went_on = ask([PROMPT, others], limit=10, stop=[stop])
            assert said.text == text[: text.find(stop)].strip()
            needed = next(n for n in range(1, 11) if stop in tokenizer.decode(free[:n]))
            check(said, PROMPT, free[:needed])
            across += whole[needed - 1] > text.find(stop)
            check(went_on, others, other)
            assert went_on.text == other_text.strip()
    assert across > 3, "no stop string lay across tokens"


def test_the_first_of_several_stop_strings_counts() -> None:
    model, tokenizer = tiny()
    free = greedy(model, PROMPT, 10)
    text = tokenizer.decode(free)
    early, late = text[3:5], text[9:11]
    assert early and late and text.find(early) < text.find(late)
    (reply,) = ask([PROMPT], limit=10, stop=[late, early, "never said"])
    assert reply.text == text[: text.find(early)].strip()


def test_what_a_model_is_shipped_with_does_not_change_greedy_answers(capfd: pytest.CaptureFixture[str]) -> None:
    model, _ = tiny()
    prompts = [PROMPT, [50, 51, 52]]
    expected = ask(prompts)
    own = model.generation_config
    model.generation_config = shipped = GenerationConfig(**SHIPPED, eos_token_id=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = ask(prompts)
        assert model.generation_config is shipped, "the model lost its own settings"
    finally:
        model.generation_config = own
    assert found == expected
    assert capfd.readouterr() == ("", "")


def test_nor_do_they_under_an_adapter(tmp_path: Path) -> None:
    _, tokenizer = tiny()
    model = spread(load_model(make_model(tmp_path), dtype="float32"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    model.generation_config = GenerationConfig(**SHIPPED, eos_token_id=1)
    (reply,) = generate(adapted, tokenizer, [PROMPT], max_new_tokens=12, stop=[], eos_ids=[1])
    check(reply, PROMPT, greedy(adapted, PROMPT, 12))
    assert model.generation_config.repetition_penalty == 5.0
