"""The one place where requests are counted, priced and logged."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from workbench.errors import disk_faults
from workbench.simulator import chance
from workbench.simulator.completion import Completion
from workbench.simulator.settings import Price

MILLION = 1e6


class Turn:
    """One request for a completion, from its arrival to its end.

    Attributes:
        number: from 1, in the order of arrival.
        identity: the id of its response.
        seconds: since the start, on arrival.
        prompt: digest of its messages; None until they were read.
        known: whether the prompt is among the references.
        cost: US dollars.
        did: what the schedule or the limits did to it; None: nothing, it is answered.
    """

    def __init__(self, number: int, identity: str, seconds: float) -> None:
        self.number, self.identity, self.seconds = number, identity, seconds
        self.prompt: str | None = None
        self.model: str | None = None
        self.known = True
        self.cost = 0.0
        self.did: str | None = None


class Desk:
    """Counts, costs and the log.

    Args:
        seed: of the ids.
        log: append-only file, a line of JSON a request: `request` (number), `id`, `at_s`, `prompt` (digest of the messages), `model`
            (the version), `did` (answered, client_left, a fault's kind, or an error's code), `answered`, `cost_usd`. A request that
            was not sent back whole to a client that was there is not answered.

    Raises:
        StoreError: the log cannot be written.
    """

    def __init__(self, seed: int, log: Path | None) -> None:
        self._started, self._seed = time.monotonic(), seed
        self._file: TextIO | None = None
        if log is not None:
            with disk_faults(f"opening the log {log.name}"):
                self._file = log.open("a", encoding="utf-8")
        self.requests, self.answered, self.unknown_prompts, self.cost = 0, 0, 0, 0.0
        self.did: Counter[str] = Counter()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def arrive(self) -> Turn:
        """Count a request."""
        self.requests += 1
        return Turn(self.requests, f"chatcmpl-{chance.identifier(self._seed, 'completion', self.requests)}", self.seconds())

    def leave(self, turn: Turn, *, whole: bool) -> None:
        """Log how a request ended."""
        did = turn.did or ("answered" if whole else "client_left")
        answered = did == "answered"
        self.did[did] += 1
        self.answered += answered
        self.unknown_prompts += answered and not turn.known
        self.cost += turn.cost
        if self._file is not None:
            entry = {
                "request": turn.number,
                "id": turn.identity,
                "at_s": round(turn.seconds, 6),
                "prompt": turn.prompt,
                "model": turn.model,
                "did": did,
                "answered": answered,
                "cost_usd": turn.cost,
            }
            print(json.dumps(entry), file=self._file, flush=True)

    def state(self) -> dict[str, Any]:
        """What has happened so far."""
        return {
            "requests": self.requests,
            "open": self.requests - sum(self.did.values()),
            "answered": self.answered,
            "unknown_prompts": self.unknown_prompts,
            "not_answered": {did: count for did, count in sorted(self.did.items()) if did != "answered"},
            "cost_usd": self.cost,
            "seconds": self.seconds(),
        }


def cost_usd(price: Price, completion: Completion) -> float:
    """US dollars for one completion."""
    plain = completion.prompt_tokens - completion.cached_tokens
    parts = (plain * price.input, completion.cached_tokens * price.cached, completion.completion_tokens * price.output)
    return sum(parts) / MILLION
