"""Chat messages of a row: checked, made plain, and divided into prompt and answer.

The form is OpenAI's (https://platform.openai.com/docs/guides/supervised-fine-tuning), which Hugging Face chat templates read as well.
"""

from __future__ import annotations

import json
from typing import Any

from workbench.data.example import Message
from workbench.data.problems import excerpt
from workbench.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
#: What a chat template may show. Other keys (ids, times, costs of a log) are no part of the conversation.
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight")


def read_messages(value: Any, name: str) -> list[Message]:
    """Check a row's messages.

    Args:
        value: whatever the row holds.
        name: the field's name, for messages.

    Raises:
        DataError: naming the message and what is wrong with it.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"field {name!r} is {excerpt(value)}, not a list of messages", fix="write a list of {role, content} objects")
    return [_message(item, f"{name}[{position}]") for position, item in enumerate(value)]


def split_answer(messages: list[Message]) -> tuple[list[Message], Message]:
    """The messages before the answer, and the answer: the last assistant message that is not weighted 0.

    Raises:
        DataError: the last message is not the assistant's, or every assistant message has weight 0.
    """
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise DataError(f"the last message is from {role!r}; the answer must come last", fix="end the row with an assistant message")
    for position in range(len(messages) - 1, -1, -1):
        message = messages[position]
        if message["role"] == "assistant" and message.get("weight", 1) != 0:
            if position == 0:
                raise DataError("no message comes before the answer", fix="add the user's message")
            return messages[:position], {key: value for key, value in message.items() if key != "weight"}
    raise DataError("every assistant message has weight 0, so there is no answer to learn", fix="remove the row, or a weight")


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """Replace the row's own system (or developer) messages, if `system` is given.

    Named ones stay: the evals format writes few-shot examples as system messages named example_user and example_assistant.
    """
    if system is None:
        return messages
    rest = [message for message in messages if not is_system(message)]
    return [{"role": "system", "content": system}, *rest]


def is_system(message: Message) -> bool:
    """Whether a message instructs the model, rather than being a turn or a few-shot example."""
    return message["role"] in ("system", "developer") and "name" not in message


def read_tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    """Check the tool schemas offered to the model; a JSON text is read as well (columnar files keep them so)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"field 'tools' is text, but not JSON: {excerpt(value)}", fix="write a list of tool schemas") from error
    if value in (None, []):
        return None
    if not isinstance(value, list):
        raise DataError(f"field 'tools' is {excerpt(value)}, not a list", fix="write a list of tool schemas")
    for position, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"tools[{position}] is {excerpt(tool)}, not a tool schema",
                fix='write {"type": "function", "function": {"name": ..., "parameters": ...}}',
            )
    return tuple(value)


def call_text(calls: list[dict[str, Any]]) -> str:
    """Tool calls as the JSON text that they are scored as: a list of {"name", "arguments"}, arguments parsed."""
    functions = [call["function"] for call in calls]
    return json.dumps([{"name": f["name"], "arguments": _arguments(f["arguments"])} for f in functions], ensure_ascii=False)


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {excerpt(value)}, not a message", fix="write {role, content} objects")
    if value.get("function_call") is not None:
        raise DataError(f"{where} uses the old `function_call`", fix="write `tool_calls`")
    message = {key: value[key] for key in _KEYS if value.get(key) is not None}
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: the role is {excerpt(role)}", fix=f"use one of {', '.join(ROLES)}")
    for key in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(key, ""), str):
            raise DataError(f"{where}: `{key}` is {excerpt(message[key])}, not text", fix="write text")
    weight = message.get("weight", 1)
    if weight not in (0, 1) or ("weight" in message and role != "assistant"):
        raise DataError(f"{where}: weight {excerpt(weight)} for {role!r}", fix="weigh assistant messages only, with 0 or 1")
    if "tool_calls" in message:
        if role != "assistant":
            raise DataError(f"{where}: `tool_calls` in a message from {role!r}", fix="only the assistant calls tools")
        message["tool_calls"] = _calls(message["tool_calls"], where)
        if not message["tool_calls"]:
            del message["tool_calls"]
    if "content" in message:
        message["content"] = _content(message["content"], where)
    elif "tool_calls" not in message:
        raise DataError(f"{where}: there is no content", fix="write the text of the message")
    return message


def _content(value: Any, where: str) -> str:
    """Text, also where it is written as a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if all(isinstance(text, str) for text in texts):
            return "".join(text for text in texts if text)
    raise DataError(f"{where}: the content is {excerpt(value)}, not text", fix="write text; images and sound cannot be used")


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise DataError(f"{where}: `tool_calls` is {excerpt(value)}, not a list", fix="write a list of calls")
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not _is_arguments(function.get("arguments")):
            raise DataError(
                f"{where}: {excerpt(call)} is not a tool call",
                fix='write {"id": ..., "type": "function", "function": {"name": ..., "arguments": "JSON text of an object"}}',
            )
    return value


def _is_arguments(value: Any) -> bool:
    try:
        return isinstance(_arguments(value), dict)
    except (ValueError, RecursionError):
        return False


def _arguments(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
