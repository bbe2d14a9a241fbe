"""How long an answer takes."""

from __future__ import annotations

import math

from workbench.simulator import chance
from workbench.simulator.settings import Latency


def first_token_s(latency: Latency, seed: int, number: int) -> float:
    """Seconds to the first token of request `number`: p50 * exp(sigma * z), `tail_factor` times that in the tail."""
    seconds = latency.p50_s * math.exp(latency.sigma * chance.normal(seed, "latency", number))
    return seconds * (latency.tail_factor if chance.uniform(seed, "tail", number) < latency.tail_share else 1.0)


def pause_s(latency: Latency) -> float:
    """Seconds between two tokens."""
    return 0.0 if latency.tokens_per_s is None else 1 / latency.tokens_per_s
