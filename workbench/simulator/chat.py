"""A request for a chat completion, from its arrival to what is sent."""

from __future__ import annotations

import time
from itertools import islice

from starlette.requests import ClientDisconnect, Request

from workbench.digest import digest
from workbench.simulator import faults, latency, request
from workbench.simulator.answers import Answers
from workbench.simulator.cache import PromptCache
from workbench.simulator.completion import Choice, Completion, choice
from workbench.simulator.delivery import Delivery, Ending
from workbench.simulator.desk import Desk, Turn, cost_usd
from workbench.simulator.errors import ApiError, unknown_model
from workbench.simulator.limits import RateLimits
from workbench.simulator.models import Models, Version
from workbench.simulator.request import ChatRequest
from workbench.simulator.settings import FaultKind, Simulator

REFUSAL = "I'm sorry, I can't help with that. (SIMULATED refusal)"


class Chat:
    """Answers requests for chat completions, or does to them what the schedule says."""

    def __init__(self, settings: Simulator, answers: Answers, models: Models, desk: Desk) -> None:
        self._settings, self._answers, self._models, self._desk = settings, answers, models, desk
        self._limits = RateLimits(settings.limits, desk.seconds)
        self._cache = PromptCache(settings.cache, desk.seconds)

    async def complete(self, incoming: Request) -> Delivery:
        """Answer one request.

        Raises:
            ApiError: an error of the client's, a limit, or a fault that is an HTTP status.
        """
        turn = self._desk.arrive()
        try:
            asked = request.parse(await request.body_of(incoming), ChatRequest)
            return self._decide(turn, asked)
        except ApiError as error:
            turn.did = turn.did or error.code or str(error.status)
            self._desk.leave(turn, whole=False)
            raise
        except ClientDisconnect:
            self._desk.leave(turn, whole=False)
            raise

    def _decide(self, turn: Turn, asked: ChatRequest) -> Delivery:
        settings = self._settings
        turn.prompt = digest(asked.plain_messages())
        version = self._models.answering(asked.model, turn.number)
        if version is None:
            raise unknown_model(asked.model)
        turn.model = version.name
        prompt_tokens, count = asked.prompt_tokens(), asked.n or 1
        wanted = (asked.most_tokens or 0) * count
        if prompt_tokens + wanted > settings.context_window:
            message = (
                f"This model's maximum context length is {settings.context_window} tokens. However, you requested "
                f"{prompt_tokens + wanted} tokens ({prompt_tokens} in the messages, {wanted} in the completion)."
            )
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        headers = self._limits.admit(version.name, prompt_tokens + wanted)
        fault = faults.hit(settings.faults, seed=settings.seed, number=turn.number, seconds=turn.seconds, prompt=turn.prompt)
        kind = fault.kind if fault is not None else None
        if fault is not None:
            turn.did = str(fault.kind)
            error = faults.as_error(fault.kind, fault.retry_after_s)
            if error is not None:
                error.headers.update(headers)
                raise error
        if kind in ("reset", "timeout"):
            return self._delivery(turn, [], kind, headers)
        completion = self._completion(turn, asked, version, self._choices(turn, asked, version, kind), prompt_tokens)
        turn.cost = cost_usd(version.price, completion)
        if asked.stream:
            return self._streamed(turn, asked, completion, kind, headers)
        return self._whole(turn, completion, kind, headers)

    def _choices(self, turn: Turn, asked: ChatRequest, version: Version, kind: FaultKind | None) -> list[Choice]:
        count = asked.n or 1
        if kind == "content_filter":
            return [Choice([], "content_filter")] * count
        if kind == "refusal":
            return [Choice([], "stop", refusal=REFUSAL)] * count
        temperature = 1.0 if asked.temperature is None else asked.temperature
        answers = self._answers.draw(
            asked.question(), version=version.name, accuracy=version.accuracy, temperature=temperature, seed=asked.seed, count=count
        )
        turn.known = answers[0].known
        return [choice(answer, asked) for answer in answers]

    def _completion(self, turn: Turn, asked: ChatRequest, version: Version, choices: list[Choice], prompt_tokens: int) -> Completion:
        cached = self._cache.lookup(version.name, asked.rendered())
        return Completion(turn.identity, int(time.time()), version.name, version.fingerprint, choices, prompt_tokens, cached)

    def _whole(self, turn: Turn, completion: Completion, kind: FaultKind | None, headers: dict[str, str]) -> Delivery:
        body = completion.whole()
        half = body[: len(body) // 2]
        if kind == "truncated_stream":
            return self._delivery(turn, [half], kind, headers, length=len(body), answer_tokens=completion.completion_tokens)
        sent = half if kind == "malformed_json" else body
        return self._delivery(turn, [sent], kind, headers, length=len(sent), answer_tokens=completion.completion_tokens)

    def _streamed(
        self, turn: Turn, asked: ChatRequest, completion: Completion, kind: FaultKind | None, headers: dict[str, str]
    ) -> Delivery:
        chunks = list(completion.chunks(include_usage=asked.stream_options is not None and asked.stream_options.include_usage))
        half = len(chunks) // 2
        if kind == "truncated_stream":
            chunks = list(islice(chunks, half))
        elif kind == "malformed_json":
            chunks[half] = chunks[half].rstrip()[: len(chunks[half]) // 2] + b"\n\n"
        return self._delivery(turn, chunks, kind, headers, stream=True)

    def _delivery(
        self,
        turn: Turn,
        parts: list[bytes],
        kind: FaultKind | None,
        headers: dict[str, str],
        *,
        length: int | None = None,
        answer_tokens: int = 0,
        stream: bool = False,
    ) -> Delivery:
        """What is sent, when. A truncated stream ends as if it were whole, a truncated body with the connection."""
        timing, pause = self._settings.latency, latency.pause_s(self._settings.latency)
        endings: dict[FaultKind | None, Ending] = {"reset": "reset", "timeout": "hang", "truncated_stream": "whole" if stream else "cut"}
        return Delivery(
            parts,
            media_type="text/event-stream; charset=utf-8" if stream else "application/json",
            headers=headers,
            delay_s=latency.first_token_s(timing, self._settings.seed, turn.number) + answer_tokens * pause,
            pause_s=pause,
            length=length,
            ending=endings.get(kind, "whole"),
            hang_s=self._settings.timeout_s,
            on_end=lambda whole: self._desk.leave(turn, whole=whole),
        )
