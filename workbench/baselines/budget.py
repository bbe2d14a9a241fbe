"""Money that is set aside before it is spent, so that the budget holds whatever happens to a request."""

from __future__ import annotations

import asyncio
import math

from workbench.errors import EvaluationError

#: Sums of many small floats are off by less than this.
_ROUNDING = 1e-9


class BudgetExceeded(EvaluationError):
    """The budget does not cover the next question; what was answered is kept."""


class Ledger:
    """The budget of one set of questions.

    A request may be sent only once its worst case is reserved: the prompt's bytes as uncached input and the longest answer. What it
    really cost replaces that when the answer is recorded. Where an answer never arrives and may have been charged for all the same
    (a timeout, a broken connection, a kill -9), its worst case stays taken for good.

    Attributes:
        spent: US dollars of the answers recorded.
        lost: US dollars that requests without an answer may have cost at most.
    """

    def __init__(self, budget: float, *, spent: float = 0.0, lost: float = 0.0) -> None:
        self.budget, self.spent, self.lost = budget, spent, lost
        self._reserved = 0.0
        self._flying = 0
        self._changed = asyncio.Condition()

    async def reserve(self, most: float) -> bool:
        """Set money aside; waits while requests in flight may still turn out cheaper. False: it cannot be had."""
        async with self._changed:
            while self.spent + self.lost + self._reserved + most > self.budget + _ROUNDING:
                if self._flying == 0:
                    return False
                await self._changed.wait()
            self._reserved += most
            self._flying += 1
            return True

    async def settle(self, most: float, *, cost: float = 0.0, lost: float = 0.0) -> None:
        """A reserved request has ended: it cost `cost`, or may have cost up to `lost`."""
        async with self._changed:
            self._flying -= 1
            self._reserved = self._reserved - most if self._flying else 0.0
            self.spent += cost
            self.lost += lost
            self._changed.notify_all()

    def __str__(self) -> str:
        lost = f" (and at most {usd(self.lost)} for answers that never came)" if self.lost else ""
        return f"{usd(self.spent)} of {usd(self.budget)}{lost}"


def usd(amount: float) -> str:
    """`0.1234` -> `$0.12`; small amounts keep two significant digits."""
    return f"${amount:.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}" if amount >= 0.0001 else f"${amount:.6f}"


def enough(amount: float) -> str:
    """A budget to write into a recipe: `amount`, rounded up to a hundredth of a cent."""
    return f"{math.ceil(amount * 1e4) / 1e4:g}"
