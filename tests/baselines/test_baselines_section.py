"""The section `baseline`: pinned versions, prices, keys, and how a question is put."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from workbench.baselines.conversation import requests
from workbench.baselines.faults import wait_asked
from workbench.baselines.prices import quote, tuned_quote
from workbench.data.example import Example
from workbench.errors import DataError, EvaluationError
from workbench.recipe.schema.baseline import Baseline, FineTune, Price, floating

PINNED = [
    ("openai", "gpt-4.1-2025-04-14"), ("openai", "ft:gpt-4.1-2025-04-14:org::abc"), ("openai", "gpt-4-0613"),
    ("anthropic", "claude-haiku-4-5-20251001"), ("anthropic", "claude-3-haiku-20240307"), ("anthropic", "claude-sonnet-4-6"),
    ("anthropic", "claude-opus-5"), ("google", "gemini-2.0-flash-001"), ("google", "gemini-2.5-flash-preview-05-20"),
    ("google", "gemini-2.5-flash-lite-preview-09-2025"),
]  # fmt: skip
FLOATING = [
    ("openai", "gpt-4.1"), ("openai", "gpt-4o-mini"), ("openai", "chatgpt-4o-latest"), ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-0"), ("anthropic", "claude-3-5-haiku-latest"),
    ("google", "gemini-2.5-flash"), ("google", "gemini-flash-latest"),
    ("google", "gemini-3-pro-preview"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "model"), PINNED)
def test_a_pinned_version_is_accepted(provider: Any, model: str) -> None:
    assert floating(provider, model) is None and Baseline(provider=provider, model=model).model == model


@pytest.mark.parametrize(("provider", "model"), FLOATING)
def test_a_floating_alias_needs_permission(provider: Any, model: str) -> None:
    with pytest.raises(ValidationError, match="not a pinned version"):
        Baseline(provider=provider, model=model)
    assert Baseline(provider=provider, model=model, allow_floating=True).model == model


def test_names_at_an_endpoint_of_ones_own() -> None:
    url = "http://localhost:8000/v1"
    for model in ("my-model@0f3c9a1b", "gpt-4.1-2025-04-14", "closed-001"):
        assert Baseline(provider="openai", model=model, url=url).key_name is None
    with pytest.raises(ValidationError, match="endpoint of your own may serve other weights"):
        Baseline(provider="openai", model="smollm2", url=url)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"provider": "openai"}, "needs a model"),
        ({"provider": "transcript"}, "needs a file"),
        ({"provider": "transcript", "transcript": "a.jsonl", "url": "http://x"}, "not asked over a `url`"),
        ({"provider": "openai", "model": "gpt-4.1-2025-04-14", "transcript": "a.jsonl"}, "belongs to provider `transcript`"),
        ({"provider": "anthropic", "model": "claude-opus-5", "logprobs": True}, "no log-probabilities"),
        ({"provider": "anthropic", "model": "claude-opus-5", "fine_tune": FineTune()}, "speaks OpenAI's API"),
        ({"provider": "openai", "model": "gpt-4.1-2025-04-14", "parameters": {"temperature": 1}}, "decided elsewhere"),
        ({"provider": "openai", "model": "gpt-4.1-2025-04-14", "fine_tune": FineTune(model="gpt-4.1")}, "not a pinned version"),
        ({"provider": "openai", "model": "gpt-4.1-2025-04-14", "url": "http://user:pass@x"}, "url"),
    ],
)
def test_keys_that_do_not_fit(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Baseline(**keys)


def test_prices_are_the_recipes_or_the_books() -> None:
    book = quote(Baseline(provider="openai", model="gpt-4.1-2025-04-14"))
    assert book is not None and book.source == "openai's public price page, as of 2025-07-04"
    assert book.cost(1_000_000, 400_000, 500_000) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.5 * 8)
    own = quote(Baseline(provider="openai", model="gpt-4.1-2025-04-14", price=Price(input=1.0, output=1.0)))
    assert own is not None and own.source == "the recipe" and own.cost(1_000_000, 1_000_000, 0) == 1.0
    tuned = quote(Baseline(provider="openai", model="ft:gpt-4o-mini-2024-07-18:org::abc"))
    assert tuned is not None and tuned.price.input == 0.3
    training = tuned_quote(Baseline(provider="openai", model="gpt-4o-mini-2024-07-18", fine_tune=FineTune()), "gpt-4o-mini-2024-07-18")
    assert training.training == 3.0 and training.source.endswith("as of 2026-04")
    with pytest.raises(EvaluationError, match="no budget can be kept"):
        quote(Baseline(provider="openai", model="gpt-9-2031-01-01"))
    with pytest.raises(EvaluationError, match="fine-tune of `gpt-9-2031-01-01` costs"):
        tuned_quote(Baseline(provider="openai", model="gpt-9-2031-01-01", fine_tune=FineTune()), "gpt-9-2031-01-01")
    with pytest.raises(ValidationError, match="costs more"):
        Price(input=1.0, cached_input=2.0, output=1.0)


def test_room_for_another_tokenizer() -> None:
    baseline = Baseline(provider="openai", model="gpt-4.1-2025-04-14")
    assert (baseline.room(1), baseline.room(64), baseline.model_copy(update={"max_tokens": 5}).room(64)) == (16, 128, 5)


def test_the_closed_model_gets_instructions_of_its_own() -> None:
    text = Example(prompt="Headline: x", references=("1",), metadata={"source": "news"})
    chat = Example(prompt=({"role": "system", "content": "old"}, {"role": "user", "content": "Hi", "weight": 0}), references=("1",))
    keys: dict[str, Any] = {"provider": "openai", "model": "gpt-4.1-2025-04-14"}
    plain, spoken = (list(one.messages) for one in requests([text, chat], Baseline(**keys)))
    assert plain == [{"role": "user", "content": "Headline: x"}]
    assert spoken == [{"role": "system", "content": "old"}, {"role": "user", "content": "Hi"}]
    told = requests([text, chat], Baseline(**keys, system="Answer 0 or 1.", prompt="Sarcastic? {input}", repeats=2))
    assert [one.repeat for one in told] == [0, 0, 1, 1]
    assert list(told[0].messages) == [
        {"role": "system", "content": "Answer 0 or 1."},
        {"role": "user", "content": "Sarcastic? Headline: x"},
    ]
    assert told[1].messages[0]["content"] == "Answer 0 or 1." and told[1].messages[1]["content"] == "Sarcastic? Hi"
    assert list(requests([chat], Baseline(**keys, system=""))[0].messages) == [{"role": "user", "content": "Hi"}]
    assert requests([text], Baseline(**keys, prompt="{source}: {input}"))[0].messages[0]["content"] == "news: Headline: x"
    with pytest.raises(DataError, match="no field 'missing'"):
        requests([text], Baseline(**keys, prompt="{missing} {input}"))


NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"Retry-After": "Sun, 01 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "soon"}, None),
        ({"x-ratelimit-reset-requests": "88ms", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "1.5s", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-tokens": "6m0s"}, 1.5),
        ({"anthropic-ratelimit-requests-reset": "2026-11-01T12:01:00Z"}, 60.0),
    ],
)
def test_how_long_an_endpoint_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_asked(headers, now=NOW) == (None if seconds is None else pytest.approx(seconds))
