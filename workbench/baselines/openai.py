"""Any OpenAI-compatible endpoint, over aiohttp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import aiohttp

from workbench.baselines.client import Asking
from workbench.baselines.conversation import Reply, Request
from workbench.baselines.faults import Transient, judge, shorten
from workbench.data.messages import call_text

URL = "https://api.openai.com/v1"


class OpenAIClient:
    """Asks `/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

    def __init__(self, how: Asking) -> None:
        self._how = how
        self._url = f"{how.url or URL}/chat/completions"
        # Newer OpenAI models refuse `max_tokens`; older compatible servers know nothing else.
        self._limit = "max_tokens" if how.url else "max_completion_tokens"

    async def __aenter__(self) -> OpenAIClient:
        self._session = session(self._how.key, self._how.timeout_s, self._how.concurrency)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def ask(self, request: Request) -> Reply:
        try:
            async with self._session.post(self._url, json=self._body(request), allow_redirects=False) as response:
                raw, status, headers = await response.read(), response.status, response.headers
        except aiohttp.ClientConnectorError as error:
            raise Transient(f"no connection: {shorten(str(error))}") from error
        except TimeoutError as error:
            raise Transient(f"no answer within {self._how.timeout_s:g} s", billed=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"the connection broke: {shorten(f'{type(error).__name__} {error}')}", billed=True) from error
        body = read_object(raw)
        if status != 200 or (body is not None and "choices" not in body and body.get("error")):
            code, message = read_error(body, raw)
            raise judge(status if status != 200 else 500, code, message, headers, model=self._how.model)
        if body is None:
            raise Transient(f"the answer is not JSON, or was cut off: {shorten(raw.decode(errors='replace'), 80)!r}", billed=True)
        try:
            return _reply(body, headers)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Transient(f"the answer is not a chat completion ({type(error).__name__}: {error})", billed=True) from error

    def _body(self, request: Request) -> dict[str, Any]:
        how = self._how
        body: dict[str, Any] = {"model": how.model, "messages": list(request.messages), self._limit: how.max_tokens}
        if how.temperature is not None:
            body["temperature"] = how.temperature
        if how.stop:
            body["stop"] = list(how.stop)
        if request.tools:
            body["tools"] = list(request.tools)
        if how.logprobs:
            body |= {"logprobs": True, "top_logprobs": 2}
        return body | how.parameters


def session(key: str | None, timeout_s: float, concurrency: int) -> aiohttp.ClientSession:
    """A session that sends the key, and goes through the proxies that the environment names."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        connector=aiohttp.TCPConnector(limit=concurrency),
        trust_env=True,
    )


def read_object(raw: bytes) -> dict[str, Any] | None:
    """A body that is a JSON object; None for anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_error(body: dict[str, Any] | None, raw: bytes) -> tuple[str | None, str]:
    """Code and message of an error, in OpenAI's form or in one of its dialects."""
    error = (body or {}).get("error", body)
    if not isinstance(error, dict):
        return None, error if isinstance(error, str) else raw.decode(errors="replace")
    code = error.get("code")
    code = code if isinstance(code, str) and not code.isdigit() else error.get("type")
    return (code if isinstance(code, str) else None), str(error.get("message") or error.get("detail") or error)


def _reply(body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
    choice = body["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    usage = body.get("usage") or {}
    refusal = message.get("refusal")
    if refusal is None and finish == "content_filter":
        refusal = "stopped by the content filter"
    calls = message.get("tool_calls")
    content = call_text(calls) if calls else message.get("content")
    if content is not None and not isinstance(content, str):
        raise TypeError("the content is not text")
    tokens = (choice.get("logprobs") or {}).get("content") or []
    model = body.get("model")
    return Reply(
        output=None if refusal is not None else content or "",
        model=model if isinstance(model, str) else None,
        fingerprint=body.get("system_fingerprint"),
        finish_reason=finish,
        refusal=refusal,
        input_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        logprobs=tuple(float(token["logprob"]) for token in tokens),
        margin=margin([[float(top["logprob"]) for top in token.get("top_logprobs") or []] for token in tokens]),
        simulated=body.get("simulated") is True or says_simulated(headers),
    )


def margin(tops: list[list[float]]) -> float | None:
    """The smallest difference between best and second best log-probability over the tokens; None where alternatives are missing."""
    gaps = [best - second for best, second in (sorted(top, reverse=True)[:2] for top in tops if len(top) >= 2)]
    return min(gaps, default=None)


def says_simulated(headers: Mapping[str, str]) -> bool:
    """Whether a response's headers say that a simulator gave it."""
    return headers.get("x-simulated", "").lower() in ("1", "true", "yes")


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a token count is {value!r}")
    return value
