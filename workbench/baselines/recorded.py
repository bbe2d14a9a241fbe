"""A user's own file of recorded answers (`provider: transcript`), matched to the questions by what was asked.

JSON lines, one answer each:

| field | meaning |
|---|---|
| messages, tools | what was asked, in OpenAI's form; or `prompt`: the text of a single user message; or `prompt_digest` |
| output | the answer; null where it was refused |
| repeat | 0 (default) for the first answer to a question, 1 for the second, ... |
| model | the version that answered (or `model_answered`) |
| status, error | answered (default), refused or failed, and why |
| input_tokens, cached_tokens, output_tokens | as in the outcomes table |
| latency_s, ttft_s, cost_usd, logprob_mean, logprob_min, margin_min | as in the outcomes table |
| simulated | whether a simulator gave it; left out means unknown, and not fit for production |

`prompt_digest` is SHA-256 of the JSON text `[messages, tools or null]` with sorted keys and no spaces. Other fields are ignored. A
`transcript.jsonl` that Workbench recorded is such a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from workbench.baselines.conversation import Answer, Request, Status
from workbench.baselines.prices import Quote, quote
from workbench.data.problems import excerpt
from workbench.digest import digest
from workbench.errors import EvaluationError, SourceError
from workbench.recipe.schema.baseline import Baseline

_COUNTS = ("input_tokens", "cached_tokens", "output_tokens")
_NUMBERS = ("latency_s", "ttft_s", "cost_usd", "logprob_mean", "logprob_min", "margin_min")


def replay(requests: Sequence[Request], baseline: Baseline, path: Path) -> list[Answer]:
    """The recorded answer to each request, in order.

    Args:
        path: `baseline.transcript`, resolved.

    Raises:
        SourceError: the file cannot be read.
        EvaluationError: a line is wrong, two answer the same, the model is another, or questions are missing: then the answers were
            recorded for another prompt or template, and the message says how many match.
    """
    recorded = _read(path, baseline.model)
    wanted = [(request.prompt_digest, request.repeat) for request in requests]
    missing = [request for request, key in zip(requests, wanted, strict=True) if key not in recorded]
    if missing:
        first = missing[0]
        digests = {key[0] for key in recorded}
        repeats = all(request.prompt_digest in digests for request in missing)
        what = "the questions match, but not every repeat was recorded" if repeats else "they were recorded with another prompt or template"
        raise EvaluationError(
            f"{len(requests) - len(missing)} of {len(requests)} questions have an answer in the transcript: {what}. The first without one "
            f"is example {first.example_id!r}, repeat {first.repeat}, prompt digest {first.prompt_digest[:16]}",
            where=str(path),
            fix="lower baseline.repeats"
            if repeats
            else "record with exactly these messages, or set baseline.prompt and baseline.system as they were",
        )
    price = quote(baseline)
    return [_answer(request, recorded[key], price) for request, key in zip(requests, wanted, strict=True)]


def _read(path: Path, model: str | None) -> dict[tuple[str, int], dict[str, Any]]:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for where, line in _lines(path):
        _check(line, where, model)
        key = (_digest(line, where), line.get("repeat") or 0)
        if key in found and any(found[key].get(name) != line.get(name) for name in ("output", "status")):
            fix = "keep one of them, or number them with `repeat`"
            raise EvaluationError("a second, different answer to the same question", where=where, fix=fix)
        found.setdefault(key, line)
    return found


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SourceError(f"the transcript cannot be read: {reason}", where=str(path), fix="correct baseline.transcript") from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"not a line of JSON: {excerpt(text)}", where=where, fix="write one JSON object a line") from error
        if not isinstance(line, dict):
            raise EvaluationError(f"{excerpt(line)} is not an object", where=where, fix="write one JSON object a line")
        if line.get("kind", "answer") == "answer":  # a transcript of Workbench's own has other kinds of line as well
            yield where, line


def _check(line: dict[str, Any], where: str, model: str | None) -> None:
    output, status = line.get("output"), line.get("status", "answered")
    wrong = next((name for name in _NUMBERS if not _is_number(line.get(name))), None)
    wrong = wrong or next((name for name in (*_COUNTS, "repeat") if not _is_count(line.get(name, 0))), None)
    if wrong is None and not isinstance(line.get("simulated"), bool | None):
        wrong = "simulated"
    if wrong is not None:
        raise EvaluationError(
            f"`{wrong}` is {excerpt(line[wrong])}", where=where, fix="see the format: counts from 0, finite numbers, true or false"
        )
    if status not in get_args(Status):
        raise EvaluationError(f"`status` is {excerpt(status)}", where=where, fix=f"write one of {', '.join(get_args(Status))}")
    if not isinstance(output, str) and (output is not None or status == "answered"):
        raise EvaluationError(f"`output` is {excerpt(output)}, not text", where=where, fix="write the answer's text, or status: refused")
    answered = line.get("model_answered") or line.get("model")
    if model is not None and answered != model:
        fix = "correct baseline.model, or use the right file"
        raise EvaluationError(f"this answer is from {excerpt(answered)}, and the recipe names `{model}`", where=where, fix=fix)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _digest(line: dict[str, Any], where: str) -> str:
    if isinstance(line.get("messages"), list):
        return digest([line["messages"], line.get("tools") or None])
    if isinstance(line.get("prompt"), str):
        return digest([[{"role": "user", "content": line["prompt"]}], None])
    if isinstance(line.get("prompt_digest"), str):
        return str(line["prompt_digest"])
    fix = "add `messages`, `prompt` or `prompt_digest`"
    raise EvaluationError("nothing says what was asked, so the answer cannot be matched to a question", where=where, fix=fix)


def _answer(request: Request, line: dict[str, Any], price: Quote | None) -> Answer:
    inputs, outputs = line.get("input_tokens"), line.get("output_tokens")
    cost = line.get("cost_usd")
    if cost is None and price is not None and inputs is not None and outputs is not None:
        cost = price.cost(inputs, line.get("cached_tokens") or 0, outputs)
    return Answer(
        request.example_id,
        request.repeat,
        line.get("status", "answered"),
        output=line.get("output"),
        error=line.get("error"),
        cost_usd=cost,
        model_requested=line.get("model_requested") or line.get("model"),
        model_answered=line.get("model_answered") or line.get("model"),
        fingerprint=line.get("fingerprint") or line.get("system_fingerprint"),
        finish_reason=line.get("finish_reason"),
        simulated=line.get("simulated"),
        replayed=True,
        **{name: line.get(name) for name in (*_COUNTS, *_NUMBERS) if name != "cost_usd"},
    )
