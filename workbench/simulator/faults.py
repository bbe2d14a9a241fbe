"""Which fault hits which request."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.simulator import chance
from workbench.simulator.errors import ApiError
from workbench.simulator.limits import retry_headers
from workbench.simulator.settings import FaultKind, ScheduledFault

#: What depends on the words and not on the moment: the same prompt is refused again.
BY_PROMPT = ("content_filter", "refusal")

_SAID = {
    429: ("Rate limit reached, SIMULATED on schedule.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request, SIMULATED on schedule.", "server_error", None),
    503: ("The engine is currently overloaded, please try again later. SIMULATED on schedule.", "server_error", None),
}


def hit(schedule: Sequence[ScheduledFault], *, seed: int, number: int, seconds: float, prompt: str) -> ScheduledFault | None:
    """The fault of one request, if it has one.

    Args:
        number: the request's, from 1.
        seconds: since the start.
        prompt: decides about refusals.
    """
    for index, fault in enumerate(schedule):
        if not (fault.from_s <= seconds and (fault.until_s is None or seconds < fault.until_s)):
            continue
        if not (fault.from_request <= number and (fault.until_request is None or number <= fault.until_request)):
            continue
        if fault.share is not None:
            what = prompt if fault.kind in BY_PROMPT else number
            if chance.uniform(seed, "fault", index, what) < fault.share:
                return fault
        elif fault.every is not None and (number - fault.from_request + 1) % fault.every == 0:
            return fault
    return None


def as_error(kind: FaultKind, retry_after_s: float | None) -> ApiError | None:
    """The error that a fault of HTTP's own kind answers with; None for the others."""
    if not isinstance(kind, int):
        return None
    message, group, code = _SAID[kind]
    return ApiError(kind, message, kind=group, code=code, headers=retry_headers(retry_after_s) if retry_after_s is not None else None)
