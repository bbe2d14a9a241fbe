"""The simulator as the official client sees it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulator.playing import LABELS, ask, client, label, logged, references, request, state
from workbench.simulator.server import running
from workbench.simulator.settings import Cache, Change, Latency, Limits, Simulator

COUNT = 300


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return references(tmp_path_factory.mktemp("references"), COUNT)


@pytest.fixture(scope="module")
def url(file: str) -> Iterator[str]:
    with running(Simulator(references=file, context_window=5000)) as found:
        yield found


def chat(number: int = 0, **more: Any) -> Any:
    return {"model": "gpt-4.1", "messages": [{"role": "user", "content": f"question {number}"}], "temperature": 0, **more}


def test_an_answer_has_the_real_shape(url: str) -> None:
    done = client(url).chat.completions.create(**chat())
    (choice,) = done.choices
    assert (done.object, done.model) == ("chat.completion", "gpt-4.1-2025-04-14")
    assert done.id.startswith("chatcmpl-") and abs(done.created - time.time()) < 5
    assert str(done.system_fingerprint).startswith("fp_")
    assert choice.message.content in LABELS and choice.finish_reason == "stop" and choice.message.refusal is None
    assert done.usage is not None and done.usage.prompt_tokens_details is not None
    assert done.usage.completion_tokens == math.ceil(len(choice.message.content) / 4)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.prompt_tokens_details.cached_tokens == 0


def test_the_stated_accuracy_comes_over_the_wire(url: str) -> None:
    async def everything() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as asynchronous:
            limit = asyncio.Semaphore(16)

            async def one(number: int) -> str | None:
                async with limit:
                    return (await asynchronous.chat.completions.create(**chat(number))).choices[0].message.content

            return list(await asyncio.gather(*(one(number) for number in range(COUNT))))

    first, second = asyncio.run(everything()), asyncio.run(everything())
    assert first == second  # temperature 0
    right = sum(text == label(number) for number, text in enumerate(first)) / COUNT
    assert abs(right - 0.88) < 4 * math.sqrt(0.88 * 0.12 / COUNT)


def test_a_stream_says_the_same(url: str) -> None:
    whole = client(url).chat.completions.create(**chat(1, logprobs=True, top_logprobs=3))
    chunks = list(
        client(url).chat.completions.create(**chat(1, logprobs=True, top_logprobs=3, stream=True, stream_options={"include_usage": True}))
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    streamed = [entry for chunk in chunks for one in chunk.choices if one.logprobs for entry in one.logprobs.content or []]
    assert whole.choices[0].logprobs is not None and streamed == whole.choices[0].logprobs.content
    plain = list(client(url).chat.completions.create(**chat(1, stream=True)))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_an_asynchronous_stream(url: str) -> None:
    async def read() -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as asynchronous:
            stream = await asynchronous.chat.completions.create(**chat(2, stream=True))
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == client(url).chat.completions.create(**chat(2)).choices[0].message.content


def test_logprobs_are_a_distribution(url: str) -> None:
    done = client(url).chat.completions.create(**chat(3, logprobs=True, top_logprobs=5))
    assert done.choices[0].logprobs is not None and done.choices[0].logprobs.content is not None
    entries = done.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == done.choices[0].message.content
    top = entries[0].top_logprobs
    assert {one.token for one in top} == {text[:4] for text in LABELS}
    assert math.isclose(sum(math.exp(one.logprob) for one in top), 1, rel_tol=1e-9)
    assert [one.logprob for one in top] == sorted((one.logprob for one in top), reverse=True)
    assert entries[0].logprob == next(one.logprob for one in top if one.token == entries[0].token)
    assert entries[0].bytes == list(entries[0].token.encode())


def test_several_choices_differ_at_high_temperature(url: str) -> None:
    done = client(url).chat.completions.create(**chat(4, n=60, temperature=1, seed=1))
    again = client(url).chat.completions.create(**chat(4, n=60, temperature=1, seed=1))
    texts = [choice.message.content for choice in done.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in done.choices] == list(range(60))
    assert texts == [choice.message.content for choice in again.choices]


def test_answers_are_cut(url: str) -> None:
    text = str(client(url).chat.completions.create(**chat(0, model="gpt-4.1")).choices[0].message.content)
    unknown = chat(0, messages=[{"role": "user", "content": "never heard"}])
    cut = client(url).chat.completions.create(**{**unknown, "max_completion_tokens": 2}).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("The simu", "length")
    stopped = client(url).chat.completions.create(**{**unknown, "stop": [" has", "nothing"]}).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("The simulator", "stop")
    assert client(url).chat.completions.create(**chat(0, max_tokens=100)).choices[0].message.content == text


def test_everything_is_marked_simulated(url: str) -> None:
    for reply in (
        ask(url, "question 1"),
        ask(url, "question 1", model="none"),
        request(url, "GET", "/models"),
        request(url, "GET", "/files"),
        request(url, "GET", "/nowhere"),
        request(url, "GET", "/models", headers={"Authorization": ""}),
        request(url.removesuffix("/v1"), "GET", "/simulator/state"),
    ):
        assert reply.headers["x-simulated"] == "true"
        assert reply.body["simulated"] is True
    streamed = ask(url, "question 1", stream=True)
    assert streamed.headers["x-simulated"] == "true"
    events = [event.removeprefix(b"data: ") for event in streamed.raw.split(b"\n\n") if event]
    assert events[-1] == b"[DONE]" and all(json.loads(event)["simulated"] for event in events[:-1])


def test_models(url: str) -> None:
    assert [model.id for model in client(url).models.list()] == ["gpt-4.1-2025-04-14", "gpt-4.1"]
    assert client(url).models.retrieve("gpt-4.1").id == "gpt-4.1"
    with pytest.raises(openai.NotFoundError):
        client(url).models.retrieve("gpt-5")


def test_wrong_requests_get_the_real_errors(url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client(url).chat.completions.create(**chat(model="gpt-9"))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client(url).chat.completions.create(**chat(messages=[{"role": "user", "content": "x" * 20_001}]))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as much:
        client(url).chat.completions.create(**chat(max_tokens=5000))
    assert much.value.code == "context_length_exceeded"
    assert request(url, "GET", "/models", headers={"Authorization": "Basic x"}).status == 401
    assert request(url, "GET", "/nowhere").status == 404
    assert request(url, "DELETE", "/models").status == 405


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content.str", "invalid_type"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"n": 0}, "n", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"top_logprobs": 2}, None, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, None, "invalid_value"),
    ],
)
def test_wrong_parameters_are_named(url: str, change: dict[str, Any], param: str | None, code: str) -> None:
    reply = request(url, "POST", "/chat/completions", chat(**change))
    assert reply.status == 400
    error = reply.body["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"null", b"{", b"\xff", b'{"model": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_object_is_refused(url: str, raw: bytes) -> None:
    assert request(url, "POST", "/chat/completions", raw).status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = sorted(
    ["model", "messages", "temperature", "seed", "n", "stop", "max_tokens", "logprobs", "top_logprobs", "stream", "tools", "top_p"]
)


@settings(max_examples=150)
@given(
    change=st.dictionaries(st.sampled_from(KNOWN), JSON, max_size=3),
    message=st.dictionaries(st.sampled_from(["role", "content", "name"]), JSON),
)
def test_no_body_makes_the_server_fail(url: str, change: dict[str, Any], message: dict[str, Any]) -> None:
    body = {**chat(messages=[{"role": "user", "content": "question 1", **message}]), **change}
    assert request(url, "POST", "/chat/completions", body).status in (200, 400, 404)


@settings(max_examples=50)
@given(body=st.dictionaries(st.sampled_from(["model", "training_file", "suffix", "method", "hyperparameters", "seed"]), JSON))
def test_no_job_makes_the_server_fail(url: str, body: dict[str, Any]) -> None:
    assert request(url, "POST", "/fine_tuning/jobs", body).status in (400, 404)


@settings(max_examples=50)
@given(kind=st.sampled_from(["multipart/form-data; boundary=b", "multipart/form-data", "text/plain", ""]), raw=st.binary(max_size=80))
def test_no_upload_makes_the_server_fail(url: str, kind: str, raw: bytes) -> None:
    for body in (raw, b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + raw + b"\r\n--b--\r\n"):
        assert request(url, "POST", "/files", body, {"Content-Type": kind}).status == 400


# ---------------------------------------------------------------- keys, limits, price, cache, time


def test_the_key_is_the_one_in_the_environment(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOSED_KEY", "right-one")
    with running(Simulator(references=file, api_key_env="CLOSED_KEY")) as url:
        with pytest.raises(openai.AuthenticationError) as caught:
            client(url).chat.completions.create(**chat())
        assert caught.value.code == "invalid_api_key" and "any" not in str(caught.value.body)
        done = openai.OpenAI(base_url=url, api_key="right-one").chat.completions.create(**chat())
        assert done.choices[0].message.content in LABELS


def test_rate_limits_have_the_real_headers(file: str) -> None:
    with running(Simulator(references=file, limits=Limits(requests_per_minute=120, tokens_per_minute=10_000))) as url:
        first = ask(url, "question 1", max_tokens=20)
        assert first.headers["x-ratelimit-limit-requests"] == "120"
        assert first.headers["x-ratelimit-remaining-requests"] == "119"
        assert first.headers["x-ratelimit-reset-requests"] == "500ms"
        assert int(first.headers["x-ratelimit-remaining-tokens"]) == 10_000 - first.body["usage"]["prompt_tokens"] - 20
        replies = [ask(url, "question 1") for _ in range(130)]
        refused = [reply for reply in replies if reply.status == 429]
        assert refused
        assert refused[0].body["error"]["code"] == "rate_limit_exceeded"
        assert refused[0].headers["retry-after"] == "1" and 0 < int(refused[0].headers["retry-after-ms"]) <= 500
        # The official client waits as long as it is told, and then gets its answer.
        patient = client(url, max_retries=3).chat.completions.create(**chat())
        assert patient.choices[0].message.content in LABELS
        found = state(url)
        assert found["not_answered"]["rate_limit_exceeded"] >= len(refused)


def test_cost_counts_cached_tokens_at_their_price(file: str) -> None:
    with running(Simulator(references=file, cache=Cache(least_tokens=256))) as url:
        system = {"role": "system", "content": "rules " * 400}
        usages = []
        for number in (1, 2):
            done = client(url).chat.completions.create(**chat(messages=[system, {"role": "user", "content": f"question {number}"}]))
            assert done.usage is not None and done.usage.prompt_tokens_details is not None
            usages.append((done.usage.prompt_tokens, done.usage.prompt_tokens_details.cached_tokens, done.usage.completion_tokens))
        assert [cached for _, cached, _ in usages] == [0, 512]
        expected = sum((sent - cached) * 2.0 + cached * 0.5 + answered * 8.0 for sent, cached, answered in usages) / 1e6
        found = state(url)
        assert math.isclose(found["cost_usd"], expected)
        assert (found["requests"], found["answered"], found["open"], found["unknown_prompts"]) == (2, 2, 0, 0)


def test_time_passes_as_set(file: str) -> None:
    with running(Simulator(references=file, latency=Latency(p50_s=0.3, sigma=0.0, tokens_per_s=5))) as url:
        body = chat(messages=[{"role": "user", "content": "unknown"}], max_tokens=4, stream=True)
        client(url).models.list()
        start = time.monotonic()
        chunks = client(url).chat.completions.create(**body)
        at = [time.monotonic() - start for chunk in chunks if chunk.choices[0].delta.content]
        assert at[0] >= 0.3 and at[3] - at[0] >= 0.55
        start = time.monotonic()
        client(url).chat.completions.create(**{**body, "stream": False})
        assert time.monotonic() - start >= 0.3 + 4 / 5


def test_a_client_that_leaves_is_not_answered(file: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with running(Simulator(references=file, latency=Latency(p50_s=1.0, sigma=0.0), log=str(log))) as url:
        with pytest.raises(openai.APITimeoutError):
            client(url, timeout=0.2).chat.completions.create(**chat())
        client(url).chat.completions.create(**chat())
    assert [(entry["did"], entry["answered"]) for entry in logged(log)] == [("client_left", False), ("answered", True)]


# ---------------------------------------------------------------- the version that changes


def test_the_version_changes_after_so_many_requests(file: str) -> None:
    change = Change(model="gpt-4.1-2025-09-01", after_requests=2, accuracy=0.0)
    with running(Simulator(references=file, accuracy=1.0, change=change)) as url:
        done = [client(url).chat.completions.create(**chat(model="gpt-4.1-2025-04-14")) for _ in range(4)]
        assert [one.model for one in done] == ["gpt-4.1-2025-04-14"] * 2 + ["gpt-4.1-2025-09-01"] * 2
        assert done[0].system_fingerprint == done[1].system_fingerprint != done[2].system_fingerprint == done[3].system_fingerprint
        assert [one.choices[0].message.content == label(0) for one in done] == [True, True, False, False]
        assert "gpt-4.1-2025-09-01" in [model.id for model in client(url).models.list()]
        assert state(url)["version"] == "gpt-4.1-2025-09-01"


def test_the_version_changes_after_a_while(file: str) -> None:
    with running(Simulator(references=file, change=Change(model="newer", after_s=2.0))) as url:
        start = time.monotonic()
        names = [client(url).chat.completions.create(**chat()).model]
        while names[-1] != "newer" and time.monotonic() - start < 10:
            time.sleep(0.1)
            names.append(client(url).chat.completions.create(**chat()).model)
        assert names[0] == "gpt-4.1-2025-04-14" and names[-1] == "newer"
