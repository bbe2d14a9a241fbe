"""Logged chat traffic, in the shapes that proxies, SDK wrappers and batch files write, as conversations.

Logs are read leniently: a line that cannot be used (an error, a cut-off answer, half a line) is counted and left out. The result
is OpenAI's fine-tuning form, which the data readers then read strictly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.errors import DataError

Conversation = dict[str, Any]  # {"messages": [...], and "tools": [...] where there are any}; the last message is the answer

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")
_TEXT_FIELDS = (("prompt", "completion"), ("input", "output"), ("prompt", "response"), ("question", "answer"))


class _UnusableError(Exception):
    """A line of the log holds no complete, answered conversation."""


@dataclass(frozen=True)
class Traffic:
    """What a log holds.

    Attributes:
        conversations: of every usable line, in the order of the log.
        skipped: lines that hold no complete, answered conversation.
        readable: whether the data readers can read the log as it is; else it has to be converted.
        format: the recipe's `data.format` for the log, or for its converted copy.
        columns: the fields of the prompt and of the answer where the format is `prompt_completion`.
    """

    conversations: list[Conversation]
    skipped: int
    readable: bool
    format: Literal["chat", "openai", "prompt_completion"]
    columns: tuple[str, str] | None


def read_traffic(path: Path) -> Traffic:
    """Read a log.

    Raises:
        DataError: it cannot be read, or no line holds a conversation.
    """
    conversations, skipped, shapes = list[Conversation](), 0, set[tuple[str, ...]]()
    for line in _lines(path):
        try:
            row = json.loads(line)
            conversation = _conversation(row)
            json.dumps(conversation, ensure_ascii=False, allow_nan=False).encode()
        except (_UnusableError, ValueError, RecursionError):
            skipped += 1
        else:
            conversations.append(conversation)
            shapes.add(_shape(row, conversation))
    if not conversations:
        raise DataError(
            f"none of its {skipped} lines holds a conversation with an answer",
            where=str(path),
            fix='write {"messages": [...]}, {"request": {...}, "response": {...}} or {"prompt": ..., "completion": ...}, one a line',
        )
    shape = shapes.pop() if len(shapes) == 1 and not skipped and path.suffix in (".jsonl", ".ndjson", ".json") else ()
    if len(shape) == 2:
        return Traffic(conversations, skipped, readable=True, format="prompt_completion", columns=(shape[0], shape[1]))
    plain = all(c.keys() == {"messages"} and all(m.keys() == {"role", "content"} for m in c["messages"]) for c in conversations)
    return Traffic(conversations, skipped, readable=bool(shape), format="chat" if plain else "openai", columns=None)


def convert_traffic(jsonl: Path, out: Path) -> int:
    """Write the usable conversations of a log as rows that the formats `chat` and `openai` read.

    Args:
        jsonl: the log.
        out: the file to write; it must not exist.

    Returns:
        The number of rows written.

    Raises:
        DataError: the log holds no conversation, or `out` exists.
    """
    traffic = read_traffic(jsonl)
    try:
        with out.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(conversation, ensure_ascii=False) + "\n" for conversation in traffic.conversations)
    except FileExistsError as error:
        raise DataError("it exists already", where=str(out), fix="choose another name, or move it away") from error
    return len(traffic.conversations)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip(b"\xef\xbb\xbf\r\n\t "):
                    yield line.removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(path), fix="correct the path") from error


def _shape(row: dict[str, Any], conversation: Conversation) -> tuple[str, ...]:
    """The fields that a reader finds the conversation in; () where it has to be taken apart first."""
    if "request" in row or "functions" in row or row.get("parallel_tool_calls") is not None:
        return ()
    messages, tools = row.get("messages"), row.get("tools")
    if isinstance(messages, list):
        kept = [_visible(message) for message in messages]
        return ("messages",) if kept == conversation["messages"] and (tools or None) == conversation.get("tools") else ()
    for fields in _TEXT_FIELDS:
        texts = [row.get(name) for name in fields]
        if all(isinstance(text, str) for text in texts):
            return fields if [message["content"] for message in conversation["messages"]] == texts else ()
    return ()


def _conversation(row: Any) -> Conversation:
    """One line of a log.

    Raises:
        _UnusableError: it holds no complete, answered conversation.
    """
    if not isinstance(row, dict):
        raise _UnusableError
    request = _body(row.get("request", row))
    response = _body(row["response"]) if "response" in row else row
    messages = _prompt(request)
    if response is not row or not (
        messages[-1]["role"] == "assistant" and _first(row, "choices", "output", "completion", "answer") is None
    ):
        messages = [*messages, _answer(response)]
    answer = messages[-1]
    if len(messages) < 2 or not any(message.get("content", "").strip() for message in messages[:-1]):
        raise _UnusableError
    if answer.get("weight") == 0 or not (answer.get("content", "").strip() or "tool_calls" in answer):
        raise _UnusableError
    tools = _tools(request.get("tools"))
    return {"messages": messages} | ({"tools": tools} if tools else {})


def _body(value: Any) -> Any:
    """The body inside an HTTP envelope (batch files, gateways), unless the call failed."""
    if isinstance(value, dict):
        status = value.get("status_code", 200)
        if value.get("error") or not isinstance(status, int) or status >= 400:
            raise _UnusableError
        return value["body"] if isinstance(value.get("body"), dict) else value
    return value


def _prompt(request: Any) -> list[dict[str, Any]]:
    if not isinstance(request, dict):
        raise _UnusableError
    given = _first(request, "messages", "input", "prompt", "question")
    if isinstance(given, str):
        messages = [{"role": "user", "content": given}]
    elif isinstance(given, list) and given:
        messages = [_message(item) for item in given]
    else:
        raise _UnusableError
    system = _first(request, "instructions", "system")  # OpenAI's Responses API; Anthropic's Messages API
    return messages if system is None else [{"role": "system", "content": _text(system)}, *messages]


def _answer(response: Any) -> dict[str, Any]:
    """The assistant's message in a response."""
    if isinstance(response, str):
        return {"role": "assistant", "content": response}
    if not isinstance(response, dict):
        raise _UnusableError
    choices = response.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        if choices[0].get("finish_reason") in ("length", "content_filter"):
            raise _UnusableError
        response = choices[0]
    if response.get("stop_reason") == "max_tokens" or response.get("status") == "incomplete":
        raise _UnusableError
    given = _first(response, "message", "output_text", "output", "text", "completion", "answer", "content")
    if isinstance(given, list) and _is_message_list(given):
        given = given[-1]
    if isinstance(given, dict):
        message = _message({"role": "assistant"} | given)
        if message["role"] != "assistant":
            raise _UnusableError
        return message
    return {"role": "assistant", "content": _text(given)}


def _is_message_list(items: list[Any]) -> bool:
    return bool(items) and isinstance(items[-1], dict) and "role" in items[-1]


def _first(mapping: dict[str, Any], *names: str) -> Any:
    return next((mapping[name] for name in names if mapping.get(name) is not None), None)


def _visible(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what no chat template shows."""
    keys = ("role", "content", "name", "tool_call_id", "reasoning_content", "weight", "tool_calls")
    return {key: message[key] for key in keys if message.get(key) is not None}


def _message(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("function_call") is not None or value.get("role") not in _ROLES:
        raise _UnusableError
    message: dict[str, Any] = {"role": value["role"]}
    calls = value.get("tool_calls")
    if value.get("content") is not None or not calls:
        message["content"] = _text(value.get("content"))
    for key in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(value.get(key), str):
            message[key] = value[key]
    if value.get("weight") in (0, 1) and message["role"] == "assistant":
        message["weight"] = value["weight"]
    if calls:
        if message["role"] != "assistant" or not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise _UnusableError
        message["tool_calls"] = calls
    return message


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else None for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(part for part in parts if part)
    raise _UnusableError


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(function.get("arguments"), str):
        return False
    return isinstance(json.loads(function["arguments"]), dict)


def _tools(value: Any) -> list[dict[str, Any]] | None:
    if not value:
        return None
    if not isinstance(value, list):
        raise _UnusableError
    for tool in value:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _UnusableError
    return value
