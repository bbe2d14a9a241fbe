"""When another attempt is made: exponential backoff with full jitter, after whatever wait the endpoint asks for.

Full jitter: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from workbench.baselines.faults import Transient

#: The first wait is up to so many seconds; it doubles up to the longest.
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
#: An endpoint that asks for a longer wait than this is not waited for.
PATIENCE = 600.0


def retrying(attempts: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> AsyncRetrying:
    """Attempts for as long as they end in `Transient`; the last one's error is raised."""
    jitter = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return (error.after or 0.0 if isinstance(error, Transient) else 0.0) + jitter(state)

    def again(error: BaseException) -> bool:
        return isinstance(error, Transient) and (error.after or 0.0) <= PATIENCE

    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=wait, retry=retry_if_exception(again), sleep=sleep, reraise=True)
