"""Anthropic's Messages API, through its own SDK."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import anthropic

from workbench.baselines.client import Asking
from workbench.baselines.conversation import Reply, Request
from workbench.baselines.dialects import converse, plain_tools, tool_calls
from workbench.baselines.faults import Transient, judge, shorten
from workbench.baselines.openai import says_simulated

URL = "https://api.anthropic.com"


class AnthropicClient:
    """Asks `/v1/messages`; retries are ours, not the SDK's."""

    def __init__(self, how: Asking) -> None:
        self._how = how

    async def __aenter__(self) -> AnthropicClient:
        how = self._how
        # Address and key are given, so that the SDK looks for neither in the environment.
        self._sdk = anthropic.AsyncAnthropic(api_key=how.key or "none", base_url=how.url or URL, timeout=how.timeout_s, max_retries=0)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._sdk.close()

    async def ask(self, request: Request) -> Reply:
        try:
            raw = await self._sdk.messages.with_raw_response.create(**self._arguments(request))
        except anthropic.APIStatusError as error:
            raise _judge(error, self._how.model) from error
        except anthropic.APITimeoutError as error:
            raise Transient(f"no answer within {self._how.timeout_s:g} s", billed=True) from error
        except anthropic.APIConnectionError as error:
            cause = error.__cause__
            raise Transient(f"the connection broke: {shorten(f'{type(cause).__name__} {cause}')}", billed=True) from error
        try:
            return _reply(await _parsed(raw), simulated=says_simulated(raw.headers))
        except (anthropic.APIError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise Transient(f"the answer is not a message ({type(error).__name__}: {shorten(str(error), 100)})", billed=True) from error

    def _arguments(self, request: Request) -> dict[str, Any]:
        how = self._how
        system, turns = converse(request.messages, "anthropic")
        arguments: dict[str, Any] = {"model": how.model, "max_tokens": how.max_tokens, "messages": turns}
        if system:
            arguments["system"] = system
        # The SDK's second version knows no temperature any more; the API does, for the models that take one.
        arguments["extra_body"] = ({} if how.temperature is None else {"temperature": how.temperature}) | how.parameters
        if how.stop:
            arguments["stop_sequences"] = list(how.stop)
        if request.tools:
            arguments["tools"] = [
                {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
                for tool in plain_tools(request.tools)
            ]
        return arguments


async def _parsed(raw: Any) -> Any:
    parsed = raw.parse()
    return await parsed if hasattr(parsed, "__await__") else parsed


def _judge(error: anthropic.APIStatusError, model: str) -> Exception:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    inner = inner if isinstance(inner, dict) else {}
    message = str(inner.get("message") or error.message)
    code = "credit_balance_too_low" if "credit balance is too low" in message else inner.get("type")
    return judge(error.status_code, code, message, error.response.headers, model=model)


def _reply(message: Any, *, simulated: bool) -> Reply:
    texts = [block.text for block in message.content if block.type == "text"]
    calls = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    refused = message.stop_reason == "refusal"
    usage = message.usage
    cached = usage.cache_read_input_tokens or 0
    return Reply(
        output=None if refused else tool_calls(calls) if calls else "".join(texts),
        model=message.model,
        finish_reason=message.stop_reason,
        refusal=("".join(texts) or "the model refused") if refused else None,
        input_tokens=usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
        cached_tokens=cached,
        output_tokens=usage.output_tokens,
        simulated=simulated or (message.model_extra or {}).get("simulated") is True,
    )
