"""Prompt caching: how much of a prompt was sent before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from workbench.simulator import tokens
from workbench.simulator.settings import Cache

#: Cached prefixes grow in steps of this many tokens (https://platform.openai.com/docs/guides/prompt-caching).
STEP = 128


class PromptCache:
    """The prefixes of recent prompts.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Cache, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._used: OrderedDict[tuple[str, bytes], float] = OrderedDict()  # oldest first

    def lookup(self, model: str, prompt: str) -> int:
        """Tokens of the longest prefix that was sent to this model before; the prompt's own prefixes are kept from now on."""
        now = self._clock()
        while self._used and next(iter(self._used.values())) < now - self._settings.kept_s:
            self._used.popitem(last=False)
        found, running = 0, hashlib.blake2b(digest_size=16)
        for end in range(STEP, tokens.count(prompt) + 1, STEP):
            part = prompt[(end - STEP) * tokens.CHARACTERS : end * tokens.CHARACTERS]
            running.update(part.encode())
            if end < self._settings.least_tokens or len(part) < STEP * tokens.CHARACTERS:
                continue
            key = (model, running.digest())
            if key in self._used:
                found = end
            self._used[key] = now
            self._used.move_to_end(key)
        return found
