"""OpenAI's messages and tools, as Anthropic and Google have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from workbench.data.example import Message
from workbench.data.messages import is_system
from workbench.errors import EvaluationError


def converse(messages: Sequence[Message], provider: Literal["anthropic", "google"]) -> tuple[str, list[dict[str, str]]]:
    """The system text, and the turns in the provider's names of the roles; both providers want them to alternate.

    Few-shot examples written as named system messages (the evals format) become turns.

    Raises:
        EvaluationError: an earlier tool call, which these providers write in ways of their own.
    """
    assistant = "assistant" if provider == "anthropic" else "model"
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for message in messages:
        if message["role"] == "tool" or "tool_calls" in message:
            fix = "use an OpenAI-compatible endpoint for conversations with tool calls"
            raise EvaluationError(
                f"a conversation with earlier tool calls cannot be asked of {provider}", where="baseline.provider", fix=fix
            )
        if is_system(message):
            system.append(message["content"])
            continue
        answer = message["role"] == "assistant" or message.get("name") == "example_assistant"
        role = assistant if answer else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append({"role": role, "content": message["content"]})
    return "\n\n".join(system), turns


def plain_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name, description and JSON Schema of each tool."""
    functions = [tool["function"] for tool in tools]
    return [
        {
            "name": function["name"],
            "description": function.get("description", ""),
            "parameters": function.get("parameters") or {"type": "object", "properties": {}},
        }
        for function in functions
    ]


def tool_calls(calls: Iterable[tuple[str, Any]]) -> str:
    """Tool calls as the JSON text that they are scored as (`data.messages.call_text`)."""
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls], ensure_ascii=False)
