"""What clients may send: read, checked, and refused in the API's own words."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request

from workbench.simulator import tokens
from workbench.simulator.errors import ApiError
from workbench.simulator.references import content_text, last_user

#: Bytes of a request's body.
LARGEST = 64 * 1024**2

Strict = TypeVar("Strict", bound=BaseModel)
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Message(BaseModel):
    """One chat message; keys beyond role and content (name, tool_calls, ...) are let through."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of POST /v1/chat/completions.

    Played: model, messages, temperature, seed, n, stop, max_tokens, max_completion_tokens, logprobs, top_logprobs, stream and
    stream_options. The API's other parameters are accepted and change nothing, save that tools count as prompt tokens. A parameter
    that the API does not have is refused.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None

    audio: Any = None
    frequency_penalty: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    metadata: Any = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    presence_penalty: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    top_p: Any = None
    user: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'logprobs' must be true when 'top_logprobs' is set.")
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("'max_tokens' and 'max_completion_tokens' cannot both be set.")
        return self

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of one answer; None: as many as it has."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages as they came."""
        return [message.model_dump(exclude_unset=True) for message in self.messages]

    def question(self) -> str:
        """What is looked up among the references."""
        return last_user(list(self.plain_messages()))

    def rendered(self) -> str:
        """The whole prompt as one text, whose beginning can be cached and whose tokens are counted."""
        head = json.dumps(self.tools) if self.tools else ""
        turns = []
        for message in self.plain_messages():
            rest = {key: value for key, value in message.items() if key not in ("role", "content")}
            turns.append(f"<|{message['role']}|>{content_text(message.get('content'))}{json.dumps(rest) if rest else ''}\n")
        return head + "".join(turns) + "<|assistant|>"

    def prompt_tokens(self) -> int:
        """Tokens of `rendered`: roles and separators cost some as well."""
        return tokens.count(self.rendered())


async def body_of(request: Request) -> bytes:
    """The body, of at most `LARGEST` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise ApiError(413, f"The request is larger than {LARGEST} bytes.", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


def parse(raw: bytes, form: type[Strict]) -> Strict:
    """A JSON body of the form wanted.

    Raises:
        ApiError: 400, naming the parameter to blame.
    """
    try:
        value = json.loads(raw, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates are no text
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "We could not parse the JSON body of your request. It must be one JSON object in UTF-8.") from error
    if not isinstance(value, dict):
        raise ApiError(400, "The body of your request must be a JSON object.")
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from error
    except RecursionError as error:
        raise ApiError(400, "The body of your request is nested too deeply.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).lstrip(".")[:200]
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if first["type"] == "value_error":
        return ApiError(400, first["msg"].removeprefix("Value error, "), code="invalid_value")
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return ApiError(400, f"Invalid value for '{param}': {first['msg']}.", param=param, code=code)
