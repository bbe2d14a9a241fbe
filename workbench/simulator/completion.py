"""Chat completions as the API writes them, whole and in chunks."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.simulator import tokens
from workbench.simulator.answers import Answer
from workbench.simulator.request import ChatRequest

#: What is said for a probability of 0, as the API does.
LOWEST_LOGPROB = -9999.0
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Choice:
    """One answer as it is sent.

    Attributes:
        pieces: its tokens.
        finish: stop, length or content_filter.
        refusal: what is said instead of an answer.
        logprobs: one entry a token, if they were asked for.
    """

    pieces: list[str]
    finish: str
    refusal: str | None = None
    logprobs: list[dict[str, Any]] | None = None


def choice(answer: Answer, request: ChatRequest) -> Choice:
    """Cut an answer at stop texts and at the token limit, and weigh its tokens."""
    text = answer.text
    for stop in request.stops:
        text = text.partition(stop)[0]
    pieces, finish = tokens.pieces(text), "stop"
    if request.most_tokens is not None and len(pieces) > request.most_tokens:
        pieces, finish = pieces[: request.most_tokens], "length"
    logprobs = _logprobs(pieces, answer, request.top_logprobs or 0) if request.logprobs else None
    return Choice(pieces, finish, logprobs=logprobs)


def _logprobs(pieces: list[str], answer: Answer, top: int) -> list[dict[str, Any]]:
    """Each token's log-probability given those before it, over all the texts that could have been said."""
    entries = []
    possible = [(tokens.pieces(text), share) for text, share in answer.options]
    for position, piece in enumerate(pieces):
        shares: defaultdict[str, float] = defaultdict(float)
        for option, share in possible:
            shares[option[position] if position < len(option) else ""] += share  # "": the option ends here
        total = sum(shares.values())
        ranked = sorted(((text, share / total) for text, share in shares.items() if text), key=lambda one: (-one[1], one[0]))
        chosen = shares[piece] / total
        entries.append({**_token(piece, chosen), "top_logprobs": [_token(text, share) for text, share in ranked[:top]]})
        possible = [(option, share) for option, share in possible if position < len(option) and option[position] == piece]
    return entries


def _token(text: str, share: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(share) if share > 0 else LOWEST_LOGPROB, "bytes": list(text.encode())}


@dataclass(frozen=True)
class Completion:
    """All the choices of one response.

    Attributes:
        identity: its id.
        created: seconds since 1970.
        model: the version that answered.
        fingerprint: of the system behind it.
        prompt_tokens: of the prompt, cached ones included.
        cached_tokens: those of them that came from the cache.
    """

    identity: str
    created: int
    model: str
    fingerprint: str
    choices: list[Choice]
    prompt_tokens: int
    cached_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(one.pieces) for one in self.choices)

    def usage(self) -> dict[str, Any]:
        """Tokens, as the API counts them up."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def whole(self) -> bytes:
        """The body of a response that is not streamed."""
        choices = []
        for index, one in enumerate(self.choices):
            silent = one.refusal is not None or one.finish == "content_filter"
            message: dict[str, Any] = {
                "role": "assistant",
                "content": None if silent else "".join(one.pieces),
                "refusal": one.refusal,
                "annotations": [],
            }
            logprobs = None if one.logprobs is None else {"content": one.logprobs, "refusal": None}
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": one.finish})
        return json.dumps({**self._head("chat.completion"), "choices": choices, "usage": self.usage()}).encode()

    def chunks(self, *, include_usage: bool) -> Iterator[bytes]:
        """The server-sent events of a streamed response, the last one [DONE]."""
        extra = {"usage": None} if include_usage else {}
        for index, one in enumerate(self.choices):
            yield self._event(index, {"role": "assistant", "content": "", "refusal": None}, None, None, extra)
            if one.refusal is not None:
                yield self._event(index, {"refusal": one.refusal}, None, None, extra)
            for position, piece in enumerate(one.pieces):
                logprobs = None if one.logprobs is None else {"content": [one.logprobs[position]], "refusal": None}
                yield self._event(index, {"content": piece}, logprobs, None, extra)
            yield self._event(index, {}, None, one.finish, extra)
        if include_usage:
            yield _sse({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()})
        yield DONE

    def _event(self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None, extra: dict[str, Any]) -> bytes:
        entry = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return _sse({**self._head("chat.completion.chunk"), "choices": [entry], **extra})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": self.fingerprint,
            "simulated": True,
        }


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
