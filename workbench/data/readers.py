"""Rows of a file -> examples: one function a format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.data.checks import check_example
from workbench.data.example import Example, Message, content_key
from workbench.data.messages import call_text, is_system, read_messages, read_tools, split_answer, with_system
from workbench.data.problems import Problems, excerpt
from workbench.data.rows import Row, rows
from workbench.data.template import Template
from workbench.data.values import field, text
from workbench.errors import DataError
from workbench.recipe.schema import Columns, Format, Task


def read(path: Path, *, format: Format, columns: Columns, task: Task) -> list[Example]:  # noqa: A002 - the recipe calls it so
    """Read and check a data file.

    Args:
        path: a .jsonl (.ndjson, .json with one object a line), .csv, .tsv or .parquet file; every format may come in any of them.
        format: how a row is written.
        columns: names of the fields of `prompt_completion` and `table` rows, and the metadata of any row.
        task: its `prompt` fills the template, its `system` replaces the row's own, its `labels` and `metric` check the answers.

    Returns:
        At least one example, in the order of the file.

    Raises:
        DataError: the file cannot be read or holds no row; or one error for all bad rows, which shows ten with file, row and fix,
            and says how many there are.
    """
    context = _Context(columns, task, Template(task.prompt) if task.prompt is not None else None)
    problems, examples, seen = Problems(path), list[Example](), False
    for number, row in rows(path, problems):
        seen = True
        try:
            metadata = {name: _metadata(row, name) for name in columns.metadata}
            example = replace(_FORMATS[format](row, context), metadata=metadata, where=f"{path.name}, row {number}")
            check_example(example, task)
        except DataError as problem:
            problems.add(number, problem)
        else:
            examples.append(example)
    problems.refuse()
    if not seen:
        raise DataError("it holds no row", where=str(path), fix="use a file with data")
    return examples


@dataclass(frozen=True)
class _Context:
    """What a format needs besides the row."""

    columns: Columns
    task: Task
    template: Template | None


def _prompt_completion(row: Row, context: _Context) -> Example:
    """Text, or TRL's conversational form: messages in both fields."""
    columns, template = context.columns, context.template
    completion = field(row, columns.completion)
    if template is not None:
        return _templated(row, template, (_answer_text(completion, context),))
    prompt = field(row, columns.prompt)
    if isinstance(prompt, list) and isinstance(completion, list):
        messages = read_messages(prompt, columns.prompt) + read_messages(completion, columns.completion)
        return _conversation(messages, read_tools(row.get("tools")), context)
    if isinstance(prompt, list | dict):
        raise DataError(f"field {columns.prompt!r} is {excerpt(prompt)}, not text", fix="write text, or messages in both fields")
    return Example(prompt=text(prompt), references=(_answer_text(completion, context),))


def _chat(row: Row, context: _Context) -> Example:
    """`messages`, and OpenAI's `tools` and `parallel_tool_calls`."""
    if row.get("functions") is not None:
        raise DataError("the row uses the old `functions`", fix="write `tools`")
    messages = read_messages(field(row, "messages"), "messages")
    parallel = row.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise DataError(f"field 'parallel_tool_calls' is {excerpt(parallel)}, not true or false", fix="write true or false")
    example = _conversation(messages, read_tools(row.get("tools")), context, row)
    if parallel is False and example.answer is not None and len(example.answer.get("tool_calls", ())) > 1:
        raise DataError("parallel_tool_calls is false, but the answer calls several tools", fix="correct one of them")
    return example


def _evals(row: Row, context: _Context) -> Example:
    """`input` (text or messages) and `ideal` (an answer, or a list of accepted ones) of the openai/evals registry."""
    given, ideal = field(row, "input"), field(row, "ideal")
    accepted = ideal if isinstance(ideal, list) and context.task.metric not in ("json_f1", "json_exact") else [ideal]
    references = tuple(_answer_text(answer, context) for answer in accepted)
    if isinstance(given, list):
        messages = read_messages(given, "input")
        if context.template is not None:
            return _templated(row | _turns(messages, context.task), context.template, references)
        return _chat_example(messages, references, None, None, context.task)
    if not isinstance(given, str):
        raise DataError(f"field 'input' is {excerpt(given)}, neither text nor messages", fix="write text or a list of messages")
    if context.template is not None:
        system = {} if context.task.system is None else {"system": context.task.system}
        return _templated(row | system, context.template, references)
    return Example(prompt=given, references=references)


def _table(row: Row, context: _Context) -> Example:
    """Columns through `task.prompt`."""
    if context.template is None:
        raise DataError("format 'table' needs `task.prompt`", fix="write a template over the columns")
    return _templated(row, context.template, (_answer_text(field(row, context.columns.completion), context),))


_FORMATS: dict[Format, Callable[[Row, _Context], Example]] = {
    "prompt_completion": _prompt_completion,
    "chat": _chat,
    "openai": _chat,
    "evals": _evals,
    "table": _table,
}


def _templated(values: Row, template: Template, references: tuple[str, ...], answer: Message | None = None) -> Example:
    prompt = template.fill(values)
    used = {name: text(values[name]) for name in template.fields}
    content = next(iter(used.values())) if len(used) == 1 else json.dumps(used, sort_keys=True, ensure_ascii=False)
    if not any(value.strip() for value in used.values()):
        raise DataError(f"{', '.join(map(repr, used))}: empty, so the prompt says nothing", fix="fill it in or remove the row")
    return Example(prompt=prompt, references=references, answer=answer, key=content_key(content))


def _conversation(messages: list[Message], tools: tuple[dict[str, Any], ...] | None, context: _Context, row: Row | None = None) -> Example:
    """Messages that end with the answer."""
    before, answer = split_answer(messages)
    calls = answer.get("tool_calls")
    references = (call_text(calls) if calls else answer["content"],)
    full = answer if calls or "reasoning_content" in answer else None
    if context.template is not None:
        return _templated((row or {}) | _turns(before, context.task), context.template, references, full)
    return _chat_example(before, references, tools, full, context.task)


def _chat_example(
    before: list[Message], references: tuple[str, ...], tools: tuple[dict[str, Any], ...] | None, answer: Message | None, task: Task
) -> Example:
    own = [{key: value for key, value in m.items() if key != "weight"} for m in before if task.system is None or not is_system(m)]
    if tools is None and len(own) == 1 and own[0].keys() == {"role", "content"} and own[0]["role"] == "user":
        content = own[0]["content"]  # the same words as a plain prompt are the same content
    else:
        content = json.dumps([own, tools], sort_keys=True, ensure_ascii=False)
    return Example(
        prompt=tuple(with_system(before, task.system)), references=references, tools=tools, answer=answer, key=content_key(content)
    )


def _turns(messages: list[Message], task: Task) -> dict[str, str]:
    """The template's {input}, the last user message, and {system}, where the row or the recipe has one."""
    users = [message["content"] for message in messages if message["role"] == "user" and "content" in message]
    systems = [message["content"] for message in messages if is_system(message) and "content" in message]
    system = task.system if task.system is not None else "\n\n".join(systems)
    if not users:
        raise DataError("no message is from the user, so there is no {input}", fix="add one, or leave task.prompt out")
    return {"input": users[-1]} | ({"system": system} if system else {})


def _answer_text(value: Any, context: _Context) -> str:
    if isinstance(value, list | dict) and context.task.metric not in ("json_f1", "json_exact"):
        fix = "write text, or use a json metric"
        raise DataError(f"the answer is {excerpt(value)}, but metric {context.task.metric!r} compares text", fix=fix)
    if value is None:
        raise DataError("an answer is null", fix="fill it in or remove the row")
    return text(value)


def _metadata(row: Row, name: str) -> Any:
    """Unlike prompt and answer, metadata may be null."""
    return None if name in row and row[name] is None else field(row, name)
