"""What OpenAI checks of a training file (https://platform.openai.com/docs/guides/supervised-fine-tuning) before it trains."""

from __future__ import annotations

import json
from typing import Any

from workbench.simulator import tokens
from workbench.simulator.references import content_text

LEAST_EXAMPLES = 10
ROLES = ("system", "developer", "user", "assistant", "tool")


class InvalidFileError(ValueError):
    """Why a file cannot be trained on, in one sentence."""


def count_tokens(content: bytes) -> int:
    """Tokens of all the examples of a file of chat messages.

    Raises:
        InvalidFileError: it is not JSONL, an example is not a conversation with an answer, or there are too few.
    """
    total = examples = 0
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidFileError("The file is not UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        examples += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidFileError(f"Line {number} is not valid JSON.") from error
        total += sum(tokens.count(content_text(message.get("content"))) for message in _messages(row, number))
    if examples < LEAST_EXAMPLES:
        raise InvalidFileError(f"Training file has {examples} example(s), but must have at least {LEAST_EXAMPLES} examples.")
    return total


def _messages(row: Any, number: int) -> list[dict[str, Any]]:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InvalidFileError(f"Line {number}: 'messages' must be a list of at least one message.")
    for position, message in enumerate(messages):
        where = f"Line {number}, message {position + 1}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise InvalidFileError(f"{where}: 'role' must be one of {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            raise InvalidFileError(f"{where}: 'content' must be text.")
    if not any(message["role"] == "assistant" and message.get("weight", 1) != 0 for message in messages):
        raise InvalidFileError(f"Line {number}: there must be at least one message from the assistant.")
    return messages
