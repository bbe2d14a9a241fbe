"""Every kind of fault, as a real client sees it, and what the log says of it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from tests.simulator.playing import ask, client, label, logged, references, state
from workbench.simulator.server import running
from workbench.simulator.settings import ScheduledFault, Simulator

KINDS: list[Any] = [429, 500, 503, "timeout", "reset", "truncated_stream", "malformed_json", "content_filter", "refusal"]
#: Each kind has two requests to itself: a plain one and a streamed one.
SCHEDULE = [
    ScheduledFault(
        kind=kind, every=1, from_request=2 * i + 1, until_request=2 * i + 2, retry_after_s=1.5 if isinstance(kind, int) else None
    )
    for i, kind in enumerate(KINDS)
]


class Seen(NamedTuple):
    plain: Any
    streamed: Any
    plain_s: float


def attempt(call: Any) -> Any:
    try:
        return call()
    except (openai.OpenAIError, ValueError) as error:
        return error


class Played(NamedTuple):
    seen: dict[Any, Seen]
    log: list[dict[str, Any]]
    state: dict[str, Any]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("faults")
    settings = Simulator(references=references(folder, 60), accuracy=1.0, faults=SCHEDULE, timeout_s=1.0, log=str(folder / "log.jsonl"))
    seen = {}
    with running(settings) as url:
        for i, kind in enumerate(KINDS):
            body: Any = {"model": "gpt-4.1", "messages": [{"role": "user", "content": f"question {i}"}]}
            start = time.monotonic()
            plain = attempt(lambda body=body: client(url).chat.completions.create(**body))
            seconds = time.monotonic() - start
            seen[kind] = Seen(plain, attempt(lambda body=body: list(client(url).chat.completions.create(**body, stream=True))), seconds)
        final = client(url).chat.completions.create(model="gpt-4.1", messages=[{"role": "user", "content": "question 1"}])
        assert final.choices[0].message.content == label(1)
        found = state(url)
    return Played(seen, logged(folder / "log.jsonl"), found)


@pytest.mark.parametrize(
    ("kind", "error"), [(429, openai.RateLimitError), (500, openai.InternalServerError), (503, openai.InternalServerError)]
)
def test_statuses(played: Played, kind: int, error: type[openai.APIStatusError]) -> None:
    for caught in played.seen[kind][:2]:
        assert isinstance(caught, error) and caught.status_code == kind
        assert caught.response.headers["retry-after"] == "2" and caught.response.headers["retry-after-ms"] == "1500"
        assert "SIMULATED" in caught.message


def test_a_reset_breaks_the_connection(played: Played) -> None:
    for caught in played.seen["reset"][:2]:
        assert isinstance(caught, openai.APIConnectionError) and not isinstance(caught, openai.APITimeoutError)


def test_a_timeout_never_answers_and_is_bounded(played: Played) -> None:
    assert isinstance(played.seen["timeout"].plain, openai.APIConnectionError)
    assert isinstance(played.seen["timeout"].streamed, openai.APIConnectionError)
    assert 1.0 <= played.seen["timeout"].plain_s < 5


def test_a_truncated_body_breaks_off_and_a_truncated_stream_just_ends(played: Played) -> None:
    assert isinstance(played.seen["truncated_stream"].plain, openai.APIConnectionError)
    chunks = played.seen["truncated_stream"].streamed
    assert chunks and all(chunk.choices[0].finish_reason is None for chunk in chunks)


def test_malformed_json_is_no_json(played: Played) -> None:
    plain, streamed, _ = played.seen["malformed_json"]
    assert isinstance(plain, (json.JSONDecodeError, openai.APIResponseValidationError)), plain
    assert isinstance(streamed, json.JSONDecodeError), streamed


def test_a_content_filter_leaves_no_content(played: Played) -> None:
    plain, streamed, _ = played.seen["content_filter"]
    assert (plain.choices[0].finish_reason, plain.choices[0].message.content) == ("content_filter", None)
    assert plain.usage.completion_tokens == 0
    assert streamed[-1].choices[0].finish_reason == "content_filter"
    assert not any(chunk.choices[0].delta.content for chunk in streamed)


def test_a_refusal_says_so(played: Played) -> None:
    plain, streamed, _ = played.seen["refusal"]
    assert plain.choices[0].message.content is None and "SIMULATED" in plain.choices[0].message.refusal
    assert any(chunk.choices[0].delta.refusal for chunk in streamed)


def test_a_fault_never_counts_as_answered(played: Played) -> None:
    expected = [str(kind) for kind in KINDS for _ in range(2)] + ["answered"]
    assert [entry["did"] for entry in sorted(played.log, key=lambda entry: entry["request"])] == expected
    assert [entry["did"] for entry in played.log if entry["answered"]] == ["answered"]
    assert played.state["answered"] == 1 and played.state["open"] == 0
    assert played.state["not_answered"] == {str(kind): 2 for kind in KINDS}
    assert len({entry["id"] for entry in played.log}) == len(played.log)
    by_prompt = {entry["prompt"] for entry in played.log}
    assert len(by_prompt) == len(KINDS)  # the last one asks again what 500 had kept from being answered


def test_a_reset_is_a_reset_on_the_wire(tmp_path: Path) -> None:
    with (
        running(Simulator(references=references(tmp_path), faults=[ScheduledFault(kind="reset", every=1)])) as url,
        pytest.raises(ConnectionResetError),
    ):
        ask(url, "question 1")


def test_a_truncated_body_is_shorter_than_it_says(tmp_path: Path) -> None:
    with running(Simulator(references=references(tmp_path), faults=[ScheduledFault(kind="truncated_stream", every=1)])) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        body = b'{"model": "gpt-4.1", "messages": [{"role": "user", "content": "question 1"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            wire.sendall(head.encode() + body)
            received = b""
            while part := wire.recv(65536):
                received += part
        headers, _, sent = received.partition(b"\r\n\r\n")
        claimed = int(headers.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert 0 < len(sent) == claimed // 2


def test_a_fifth_of_faults_still_lets_every_question_be_answered_once(tmp_path: Path) -> None:
    """What a recorder has to do, done by hand: ask again until it is answered, and never after."""
    kinds: list[Any] = [500, "reset", "truncated_stream", "malformed_json"]
    faults = [ScheduledFault(kind=kind, share=0.05) for kind in kinds]
    log = tmp_path / "log.jsonl"
    with running(Simulator(references=references(tmp_path, 100), faults=faults, log=str(log))) as url:
        for number in range(100):
            while True:
                try:
                    if "choices" in ask(url, f"question {number}").body:
                        break
                except (OSError, ValueError, http.client.IncompleteRead):
                    continue
    entries = logged(log)
    answered = [entry["prompt"] for entry in entries if entry["answered"]]
    assert len(answered) == len(set(answered)) == 100
    assert len(entries) > 100
