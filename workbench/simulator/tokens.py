"""Token counts by a stated approximation: four characters are a token, as OpenAI's rule of thumb for English says."""

from __future__ import annotations

CHARACTERS = 4


def count(text: str) -> int:
    """Tokens of a text, the last one possibly shorter."""
    return -(-len(text) // CHARACTERS)


def pieces(text: str) -> list[str]:
    """The tokens of a text; joined they are the text."""
    return [text[start : start + CHARACTERS] for start in range(0, len(text), CHARACTERS)]
