"""What a closed model is asked, what it says, and what becomes of a question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.data.example import Example, Message
from workbench.data.messages import with_system
from workbench.data.template import Template
from workbench.digest import digest
from workbench.errors import DataError
from workbench.recipe.schema.baseline import Baseline

Status = Literal["answered", "refused", "failed"]


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        messages: in OpenAI's form.
        repeat: 0 for the first answer to an example, 1 for the second, ...
        tools: tool schemas offered, in OpenAI's form.
    """

    example_id: str
    messages: tuple[Message, ...]
    repeat: int = 0
    tools: tuple[dict[str, Any], ...] | None = None

    @property
    def prompt_digest(self) -> str:
        """What recorded answers are matched by: SHA-256 of the messages (and tools) exactly as sent."""
        return digest([list(self.messages), list(self.tools) if self.tools else None])

    @property
    def most_tokens(self) -> int:
        """No tokenizer makes more of it: byte-level ones make at most a token a byte, and chat templates add a few."""
        size = len(json.dumps([self.messages, self.tools], ensure_ascii=False).encode())
        return size + 64 + 16 * len(self.messages) + (1024 if self.tools else 0)


@dataclass(frozen=True)
class Reply:
    """What an endpoint said to one request.

    Attributes:
        output: the text, or tool calls as JSON; None where it refused.
        input_tokens: cached ones included; None where it does not say.
        logprobs: natural log-probability of each generated token; empty where it does not say.
        margin: smallest difference between the best and the second best token's.
        simulated: it says of itself that it is a simulator.
    """

    output: str | None
    model: str | None
    fingerprint: str | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    logprobs: tuple[float, ...] = ()
    margin: float | None = None
    simulated: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of a question; the fields are columns of the outcomes table where they have their names.

    Attributes:
        status: answered, refused (by the model or a content filter), or failed; scoring is left to the caller.
        latency_s: seconds of the attempt that succeeded, without the waiting before it.
        cost_usd: at the price of the day it was recorded; None where nobody gave a price.
        simulated: None where an answer recorded elsewhere does not say.
        replayed: it was read from the transcript and cost nothing today.
    """

    example_id: str
    repeat: int
    status: Status
    output: str | None = None
    error: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    latency_s: float | None = None
    ttft_s: float | None = None
    cost_usd: float | None = None
    logprob_mean: float | None = None
    logprob_min: float | None = None
    margin_min: float | None = None
    model_requested: str | None = None
    model_answered: str | None = None
    fingerprint: str | None = None
    finish_reason: str | None = None
    simulated: bool | None = None
    replayed: bool = False


def requests(examples: Sequence[Example], baseline: Baseline) -> list[Request]:
    """The questions for a closed model: every example, `baseline.repeats` times, in the order of the examples.

    Raises:
        DataError: `baseline.prompt` names a field that an example has not.
    """
    template = Template(baseline.prompt) if baseline.prompt is not None else None
    asked = [(example, tuple(_messages(example, baseline.system, template))) for example in examples]
    return [Request(example.id, messages, repeat, example.tools) for repeat in range(baseline.repeats) for example, messages in asked]


def _messages(example: Example, system: str | None, template: Template | None) -> list[Message]:
    prompt = example.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_sendable(message) for message in prompt]
    if template is not None:
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None:
            raise DataError(
                "no message is the user's, so `baseline.prompt` has no {input}", where=example.where, fix="remove baseline.prompt"
            )
        fields: Mapping[str, Any] = {**example.metadata, "input": messages[last]["content"]}
        try:
            messages[last] = {**messages[last], "content": template.fill(fields)}
        except DataError as error:
            raise DataError(error.what, where=f"baseline.prompt, {example.where}", fix=error.fix) from error
    replaced = with_system(messages, system)
    return [message for message in replaced if not (message["role"] == "system" and message["content"] == "")]


def _sendable(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in ("weight", "reasoning_content")}
