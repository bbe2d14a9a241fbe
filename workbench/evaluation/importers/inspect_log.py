"""Inspect (inspect_ai): `.json` logs, and `.eval` logs, which are zip archives of the same JSON in pieces.

Format: `inspect_ai/log/_log.py` (EvalLog, EvalSample) and `log/_recorders/eval.py` of inspect_ai 0.3.285.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError
from workbench.evaluation.importers.files import Row, choose, convert, parse_json, read_bytes, read_json
from workbench.evaluation.importers.files import score as checked_score

_TOOL = "Inspect"
_LARGEST_MEMBER = 512 * 2**20  # bytes of one sample's JSON; a damaged or hostile archive must not fill the memory
_ZSTANDARD = 93  # the method current versions compress with; Python's zipfile knows it from 3.14 on

# `value_to_float` of inspect_ai/scorer/_metric.py: correct, partly, incorrect, no answer.
_WORDS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_ATTACHMENT = "attachment://"


def rows(path: Path, metric: str | None) -> list[Row]:
    """Rows of one log; see `import_log`. The candidate is the model's name, `repeat` the epoch, counted from 0."""
    head, samples = _read_archive(path) if path.suffix == ".eval" else _read_whole(path)
    where = str(path)
    scores = convert(samples, _flat_scores, where=where, tool=_TOOL)
    available = list(dict.fromkeys(name for found in scores for name in found))
    chosen = choose(metric, available, where)
    try:
        model = str(head["eval"]["model"])
    except (KeyError, TypeError) as error:
        raise EvaluationError("not an Inspect log: no eval.model", where=where, fix="log it again") from error

    def row(sample: dict[str, Any]) -> Row:
        value, status, error = _judge(sample, chosen)
        score = checked_score(value, chosen, available, where) if status == "scored" else None
        if status == "scored" and score is None:
            status, error = "unscored", f"{chosen!r} is NaN: the scorer left it unscored"
        attachments = sample.get("attachments") or {}
        target = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
        output = sample.get("output") or {}
        return {
            "candidate": model,
            "example_id": str(sample["id"]),
            "repeat": sample["epoch"] - 1,
            "score": score,
            "status": status,
            "error": error,
            "prompt": _prompt(sample["input"], attachments),
            "output": _attached(output.get("completion"), attachments),
            "reference": _attached(target[0], attachments) if target else None,
            "latency_s": output.get("time"),
            "model_requested": model,
            "model_answered": output.get("model"),
            "metadata": sample.get("metadata") or {},
            # A log cannot tell whether an endpoint was a simulator; of the built-in mock it can.
            "simulated": True if model.startswith("mockllm/") else None,
            **_usage(sample, model),
        }

    return convert(samples, row, where=where, tool=_TOOL)


def _judge(sample: dict[str, Any], metric: str) -> tuple[Any, str, str | None]:
    """The metric's value with words turned to numbers, the status and the error of one sample."""
    if sample.get("error"):
        return None, "failed", str(sample["error"]["message"])
    if sample.get("invalidation"):
        return None, "unscored", "invalidated in the log"
    scores = _flat_scores(sample)
    if metric not in scores:
        return None, "unscored", f"no score {metric!r}"
    value = scores[metric]
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value, "scored", None


def _flat_scores(sample: dict[str, Any]) -> dict[str, Any]:
    """Values by scorer, or by `scorer/field` where a scorer gives several."""
    flat: dict[str, Any] = {}
    for name, score in (sample.get("scores") or {}).items():
        value = score["value"]
        flat |= {f"{name}/{field}": part for field, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _prompt(value: Any, attachments: dict[str, str]) -> str:
    if isinstance(value, str):
        return str(_attached(value, attachments))
    return json.dumps([{"role": m["role"], "content": _attached(m["content"], attachments)} for m in value], ensure_ascii=False)


def _attached(value: Any, attachments: dict[str, str]) -> Any:
    """Long texts are kept once, under their hash."""
    return attachments.get(value.removeprefix(_ATTACHMENT), value) if isinstance(value, str) and value.startswith(_ATTACHMENT) else value


def _usage(sample: dict[str, Any], model: str) -> Row:
    """Tokens and cost of every call to the model. Inspect's `input_tokens` leaves cached ones out; ours counts them."""
    usage = (sample.get("model_usage") or {}).get(model)
    if usage is None:
        return {}
    read, written = usage.get("input_tokens_cache_read"), usage.get("input_tokens_cache_write")
    return {
        "input_tokens": usage["input_tokens"] + (read or 0) + (written or 0),
        "cached_tokens": read,
        "output_tokens": usage["output_tokens"],
        "cost_usd": usage.get("total_cost"),
    }


def _read_whole(path: Path) -> tuple[Any, list[Any]]:
    log = read_json(path)
    samples = log.get("samples") if isinstance(log, dict) else None
    if not isinstance(samples, list) or not samples:
        raise EvaluationError("the log holds no samples", where=str(path), fix="run Inspect with samples logged (its default)")
    return log, samples


def _read_archive(path: Path) -> tuple[Any, list[Any]]:
    """Head and samples. Nothing is unpacked to disk, and no member's name is used as a path."""
    data = read_bytes(path)
    where = str(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()}  # a later member replaces an earlier one of its name
            head = members.get("header.json") or members.get("_journal/start.json")  # an unfinished run has no header yet
            names = [name for name in members if name.startswith("samples/") and name.endswith(".json")]
            if head is None or not names:
                raise EvaluationError("the log holds no samples", where=where, fix="run Inspect with samples logged (its default)")
            parts = [parse_json(_member(archive, data, members[name]), f"{where}, {name}") for name in (head.filename, *names)]
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, ValueError, EOFError) as error:
        raise EvaluationError(f"a damaged .eval archive: {str(error)[:200]}", where=where, fix="copy it again") from error
    return parts[0], parts[1:]


def _member(archive: zipfile.ZipFile, data: bytes, info: zipfile.ZipInfo) -> bytes:
    """The checked content of one member of the zip archive `data`."""
    if info.compress_type != _ZSTANDARD:
        with archive.open(info) as file:
            content = file.read(_LARGEST_MEMBER + 1)
    else:
        import pyarrow as pa

        # PKWARE APPNOTE 4.3.7: 30 bytes of local header, the lengths of name and extra field at 26, then both, then the data.
        name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        start = info.header_offset + 30 + name + extra
        packed = pa.BufferReader(data[start : start + info.compress_size])
        with pa.CompressedInputStream(packed, "zstd") as stream:
            content = stream.read(_LARGEST_MEMBER + 1)
        if zlib.crc32(content) != info.CRC:
            raise ValueError(f"{info.filename} does not match its checksum")
    if len(content) > _LARGEST_MEMBER:
        raise ValueError(f"{info.filename} is larger than {_LARGEST_MEMBER >> 20} MiB")
    return content
