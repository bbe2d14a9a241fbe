"""Google's Gemini API, through its own SDK."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any

import aiohttp
import httpx2
from google import genai
from google.genai import errors, types

from workbench.baselines.client import Asking
from workbench.baselines.conversation import Reply, Request
from workbench.baselines.dialects import converse, plain_tools, tool_calls
from workbench.baselines.faults import Transient, judge, shorten
from workbench.baselines.openai import margin, says_simulated

URL = "https://generativelanguage.googleapis.com"

#: Ends that mean that a filter stepped in.
_FILTERED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"}


class GoogleClient:
    """Asks `models/MODEL:generateContent`; retries are ours, not the SDK's."""

    def __init__(self, how: Asking) -> None:
        self._how = how

    async def __aenter__(self) -> GoogleClient:
        how = self._how
        options = types.HttpOptions(
            base_url=how.url or URL, timeout=round(how.timeout_s * 1000), retry_options=types.HttpRetryOptions(attempts=1)
        )
        # Address and key are given, so that the SDK looks for neither in the environment.
        self._sdk = genai.Client(api_key=how.key or "none", vertexai=False, http_options=options)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._sdk.aio.aclose()

    async def ask(self, request: Request) -> Reply:
        system, turns = converse(request.messages, "google")
        contents = [types.Content(role=turn["role"], parts=[types.Part(text=turn["content"])]) for turn in turns]
        try:
            response = await self._sdk.aio.models.generate_content(
                model=self._how.model, contents=contents, config=self._config(system, request)
            )
        except errors.APIError as error:
            raise _judge(error, self._how.model) from error
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise Transient(f"no answer within {self._how.timeout_s:g} s", billed=True) from error
        except (aiohttp.ClientError, httpx2.HTTPError, OSError) as error:
            raise Transient(f"the connection broke: {shorten(f'{type(error).__name__} {error}')}", billed=True) from error
        except ValueError as error:  # the SDK could not read the body
            raise Transient(f"the answer is not JSON, or was cut off: {shorten(str(error), 100)}", billed=True) from error
        try:
            return _reply(response)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Transient(f"the answer is not content ({type(error).__name__}: {shorten(str(error), 100)})", billed=True) from error

    def _config(self, system: str, request: Request) -> Any:
        how = self._how
        tools: list[Any] | None = None
        if request.tools:
            declared = [
                types.FunctionDeclaration(name=tool["name"], description=tool["description"], parameters_json_schema=tool["parameters"])
                for tool in plain_tools(request.tools)
            ]
            tools = [types.Tool(function_declarations=declared)]
        return types.GenerateContentConfig(
            system_instruction=system or None,
            max_output_tokens=how.max_tokens,
            temperature=how.temperature,
            stop_sequences=list(how.stop) or None,
            response_logprobs=True if how.logprobs else None,
            logprobs=2 if how.logprobs else None,
            tools=tools,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            http_options=types.HttpOptions(extra_body=how.parameters) if how.parameters else None,
        )


def _judge(error: errors.APIError, model: str) -> Exception:
    text = f"{error.message or ''}"
    delay = re.search(r"'retryDelay': '([\d.]+)s'", str(error.details))  # google.rpc.RetryInfo
    status = 401 if "API key not valid" in text else error.code or 500  # a wrong key is a 400 there
    headers = getattr(error.response, "headers", None) or {}
    return judge(status, error.status, text, headers, model=model, after=float(delay[1]) if delay else None)


def _reply(response: Any) -> Reply:
    usage = response.usage_metadata
    feedback = response.prompt_feedback
    candidate = response.candidates[0] if response.candidates else None
    if candidate is None and not (feedback and feedback.block_reason):
        raise ValueError("there is no candidate")
    finish = candidate.finish_reason.name if candidate is not None and candidate.finish_reason else None
    refusal = f"blocked: {feedback.block_reason.name}" if candidate is None else f"blocked: {finish}" if finish in _FILTERED else None
    parts = (candidate.content.parts if candidate is not None and candidate.content else None) or []
    calls = [(part.function_call.name, part.function_call.args or {}) for part in parts if part.function_call]
    text = "".join(part.text for part in parts if part.text and not part.thought)
    chosen = candidate.logprobs_result if candidate is not None else None
    headers = response.sdk_http_response.headers if response.sdk_http_response else None
    told = usage is not None and usage.prompt_token_count is not None
    return Reply(
        output=None if refusal else tool_calls(calls) if calls else text,
        model=response.model_version,
        finish_reason=finish,
        refusal=refusal,
        input_tokens=usage.prompt_token_count if told else None,
        cached_tokens=(usage.cached_content_token_count or 0) if told else None,
        output_tokens=(usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0) if told else None,
        logprobs=tuple(token.log_probability for token in (chosen.chosen_candidates or [])) if chosen else (),
        margin=margin([[top.log_probability for top in step.candidates or []] for step in chosen.top_candidates or []]) if chosen else None,
        simulated=says_simulated({name.lower(): value for name, value in (headers or {}).items()}),
    )
