"""Anthropic's and Google's own SDKs, against a stand-in that speaks their HTTP protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.baselines.standin import Server, serve
from workbench.baselines.conversation import Answer, Request
from workbench.baselines.faults import Halt
from workbench.baselines.record import record
from workbench.errors import EnvironmentFault
from workbench.recipe.schema.baseline import Baseline, Price

KEY = "sk-testing-0123456789abcdefghij"
PATHS = {"anthropic": "/v1/messages", "google": "/{version}/models/{call}"}
MODELS = {"anthropic": "claude-haiku-4-5-20251001", "google": "gemini-2.0-flash-001"}
MODULES = {"anthropic": "anthropic", "google": "google.genai"}
TOOL = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {"day": {"type": "string"}}}}}


def good(provider: str, text: str = "yes", **changes: Any) -> dict[str, Any]:
    if provider == "anthropic":
        usage = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 3}
        blocks = [{"type": "text", "text": text}]
        return {"id": "m", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001", "content": blocks, "usage": usage,
                "stop_reason": "end_turn", "stop_sequence": None, **changes}  # fmt: skip
    usage = {"promptTokenCount": 14, "cachedContentTokenCount": 4, "candidatesTokenCount": 2, "thoughtsTokenCount": 1}
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", **changes}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.0-flash-001"}


class Desk:
    """The provider's side: gives the responses of a list, then good answers."""

    def __init__(self, provider: str, *responses: tuple[int, Any]) -> None:
        self.provider, self.responses = provider, list(responses)
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("x-goog-api-key") or request.headers.get("Authorization", "").removeprefix("Bearer "))
        status, body = self.responses.pop(0) if self.responses else (200, good(self.provider))
        if isinstance(body, str):
            return web.Response(status=status, text=body, content_type="application/json")
        return web.json_response(body, status=status, headers={"retry-after": "0"})


@pytest.fixture(params=["anthropic", "google"])
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(MODULES[request.param])
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr("workbench.baselines.retry.FIRST_WAIT", 0.01)
    return str(request.param)


def ask(desk: Desk, folder: Path, *, tools: Any = None, system: bool = True, **changes: Any) -> Answer:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"})
    with serve(Server(), [web.post(PATHS[desk.provider], desk.answer)]) as server:
        keys: dict[str, Any] = {
            "provider": desk.provider,
            "model": MODELS[desk.provider],
            "url": server.url.removesuffix("/v1"),
            "api_key_env": "TEST_KEY",
            "price": Price(input=1.0, cached_input=0.5, output=4.0),
            "attempts": 3,
            "timeout_s": 5.0,
        }
        baseline = Baseline(**keys | changes)
        made = record(
            [Request("a", messages, tools=tools)], baseline, folder, max_tokens=16, stop=["\n"], advance=lambda done, note="": None
        )
    assert KEY not in "".join(path.read_text() for path in folder.glob("*.jsonl"))
    return made.answers[0]


def test_an_answer_and_its_usage(provider: str, tmp_path: Path) -> None:
    desk = Desk(provider)
    one = ask(desk, tmp_path)
    assert (one.status, one.output, one.model_answered, one.error) == ("answered", "yes", MODELS[provider], None)
    assert (one.input_tokens, one.cached_tokens, one.output_tokens, one.simulated) == (14, 4, 3, False)
    assert one.cost_usd == pytest.approx((10 + 4 * 0.5 + 3 * 4) / 1e6)
    sent = desk.bodies[0]
    assert desk.keys == [KEY]
    if provider == "anthropic":
        assert (sent["system"], sent["max_tokens"], sent["temperature"], sent["stop_sequences"]) == ("Be brief.", 16, 0, ["\n"])
        assert sent["messages"] == [{"role": "user", "content": "Is it?"}]
    else:
        config = sent["generationConfig"]
        assert (config["maxOutputTokens"], config["temperature"], config["stopSequences"]) == (16, 0, ["\n"])
        assert sent["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert ask(desk, tmp_path).replayed and len(desk.bodies) == 1


def test_parameters_reach_the_provider(provider: str, tmp_path: Path) -> None:
    desk = Desk(provider)
    parameters = {"top_k": 3} if provider == "anthropic" else {"generationConfig": {"topK": 3}}
    ask(desk, tmp_path, parameters=parameters)
    sent = desk.bodies[0]
    assert (sent if provider == "anthropic" else sent["generationConfig"])["top_k" if provider == "anthropic" else "topK"] == 3


def test_tool_calls_are_scored_as_everywhere(provider: str, tmp_path: Path) -> None:
    if provider == "anthropic":
        body = good(provider, content=[{"type": "tool_use", "id": "t", "name": "book", "input": {"day": "Monday"}}], stop_reason="tool_use")
    else:
        body = good(provider, content={"role": "model", "parts": [{"functionCall": {"name": "book", "args": {"day": "Monday"}}}]})
    desk = Desk(provider, (200, body))
    assert ask(desk, tmp_path, tools=(TOOL,)).output == '[{"name": "book", "arguments": {"day": "Monday"}}]'
    assert "book" in str(desk.bodies[0]["tools"])


def test_overload_is_retried_and_a_broken_body_too(provider: str, tmp_path: Path) -> None:
    desk = Desk(provider, (529 if provider == "anthropic" else 503, {"error": {"message": "overloaded"}}), (200, '{"half": '))
    assert ask(desk, tmp_path).output == "yes"
    assert len(desk.bodies) == 3


def test_a_wrong_key_stops_at_once(provider: str, tmp_path: Path) -> None:
    body = {"error": {"message": f"API key not valid: {KEY}", "type": "authentication_error", "status": "INVALID_ARGUMENT"}}
    desk = Desk(provider, (401 if provider == "anthropic" else 400, body))
    with pytest.raises(Halt, match="does not accept the key") as caught:
        ask(desk, tmp_path)
    assert len(desk.bodies) == 1 and KEY not in str(caught.value)


def test_an_unknown_model_stops(provider: str, tmp_path: Path) -> None:
    with pytest.raises(Halt, match="there is no model"):
        ask(Desk(provider, (404, {"error": {"message": "not found", "type": "not_found_error"}})), tmp_path)


def test_a_refusal_is_a_state(provider: str, tmp_path: Path) -> None:
    body = good(provider, stop_reason="refusal") if provider == "anthropic" else good(provider, finishReason="SAFETY")
    assert ask(Desk(provider, (200, body)), tmp_path).status == "refused"


def test_google_blocks_a_prompt_and_gives_log_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("google.genai")
    monkeypatch.setenv("TEST_KEY", KEY)
    (tmp_path / "blocked").mkdir()
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 5}}
    assert ask(Desk("google", (200, blocked)), tmp_path / "blocked").error == "refused: blocked: SAFETY"
    scores = {
        "chosenCandidates": [{"token": "yes", "logProbability": -0.25}],
        "topCandidates": [{"candidates": [{"token": "yes", "logProbability": -0.25}, {"token": "no", "logProbability": -1.5}]}],
    }
    desk = Desk("google", (200, good("google", logprobsResult=scores)))
    one = ask(desk, tmp_path, logprobs=True)
    assert (one.logprob_mean, one.logprob_min, one.margin_min) == (-0.25, -0.25, 1.25)
    assert desk.bodies[0]["generationConfig"]["responseLogprobs"] is True


def test_a_missing_package_is_named(provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, MODULES[provider].partition(".")[0], None)
    monkeypatch.delitem(sys.modules, f"workbench.baselines.{provider}", raising=False)
    with pytest.raises(EnvironmentFault) as caught:
        ask(Desk(provider), tmp_path)
    assert caught.value.fix == f"pip install 'workbench[{provider}]'"
