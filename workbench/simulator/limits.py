"""Rate limits with the headers of the real API (https://platform.openai.com/docs/guides/rate-limits)."""

from __future__ import annotations

import math
from collections.abc import Callable

from workbench.simulator.errors import ApiError
from workbench.simulator.settings import Limits


class Bucket:
    """A token bucket: full at first, refilled continuously.

    Args:
        per_minute: its size, and what flows in within a minute.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.size, self._level, self._at = per_minute, float(per_minute), now

    def level(self, now: float) -> float:
        """What it holds at `now` (seconds of the clock it was made with)."""
        self._level = min(float(self.size), self._level + (now - self._at) * self.size / 60)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Take what `level` said is there."""
        self._level -= amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until it holds `amount`; infinite where it never will."""
        if amount > self.size:
            return math.inf
        return max(0.0, amount - self.level(now)) * 60 / self.size


class RateLimits:
    """Admits or refuses requests.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._clock = clock
        sizes = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._buckets = {name: Bucket(size, clock()) for name, size in sizes.items() if size is not None}

    def admit(self, model: str, tokens: int) -> dict[str, str]:
        """Count a request; returns the headers of its response.

        Args:
            tokens: those of its prompt, and the most that it asks for.

        Raises:
            ApiError: 429; such a request does not count.
        """
        now, amounts = self._clock(), {"requests": 1, "tokens": tokens}
        waits = {name: bucket.wait(amounts[name], now) for name, bucket in self._buckets.items()}
        name = max(waits, key=waits.__getitem__, default="requests")
        if waits.get(name, 0.0) > 0:
            raise self._refusal(model, name, amounts[name], waits[name], now)
        for kind, bucket in self._buckets.items():
            bucket.take(amounts[kind])
        return self._headers(now)

    def _refusal(self, model: str, name: str, amount: int, wait: float, now: float) -> ApiError:
        bucket, unit = self._buckets[name], {"requests": "RPM", "tokens": "TPM"}[name]
        on = f"for {model} in organization simulated on {name} per min ({unit})"
        if math.isinf(wait):
            text = f"Request too large {on}: Limit {bucket.size}, Requested {amount}. The input or output tokens must be reduced."
            return ApiError(429, text, kind=name, code="rate_limit_exceeded", headers=self._headers(now))
        used = bucket.size - math.floor(bucket.level(now))
        text = f"Rate limit reached {on}: Limit {bucket.size}, Used {used}, Requested {amount}. Please try again in {span(wait)}."
        return ApiError(429, text, kind=name, code="rate_limit_exceeded", headers={**self._headers(now), **retry_headers(wait)})

    def _headers(self, now: float) -> dict[str, str]:
        found = {}
        for name, bucket in self._buckets.items():
            found[f"x-ratelimit-limit-{name}"] = str(bucket.size)
            found[f"x-ratelimit-remaining-{name}"] = str(math.floor(bucket.level(now)))
            found[f"x-ratelimit-reset-{name}"] = span(bucket.wait(bucket.size, now))
        return found


def retry_headers(seconds: float) -> dict[str, str]:
    """When to try again: whole seconds, rounded up, as HTTP has it, and milliseconds."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def span(seconds: float) -> str:
    """Seconds as the API writes them: `120ms`, `8.64s`, `6m0s`, `1h2m3s`; rounded up to a millisecond."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest / 1000:g}s"
