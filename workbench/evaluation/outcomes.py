"""The outcomes table: one row for every (candidate, example, repeat). All that is reported is a function of such tables.

Columns, in order; only the first three are required of a table that comes from elsewhere:

| column | type | meaning |
|---|---|---|
| candidate | text | what answered |
| example_id | text | which example; the same in every candidate's rows |
| score | float, null | 0 (wrong) to 1 (right); null: could not be scored |
| prompt | text, null | what was asked; chat messages as JSON |
| output | text, null | what was answered |
| reference | text, null | the accepted answer; of several, the first |
| valid | bool, null | the output has the form the task asks for |
| input_tokens | int, null | tokens of the prompt, cached ones included |
| cached_tokens | int, null | those of them that came from a cache |
| output_tokens | int, null | generated tokens |
| latency_s | float, null | seconds from request to last token |
| ttft_s | float, null | seconds from request to first token |
| cost_usd | float, null | US dollars for this answer |
| logprob_mean | float, null | mean natural log-probability of the generated tokens |
| logprob_min | float, null | the lowest of them |
| margin_min | float, null | smallest difference between the best and second best token's log-probability |
| label_prob | float, null | label tasks: probability of the chosen label among all labels, 0 to 1 |
| model_requested | text, null | model name that was asked for |
| model_answered | text, null | model name and version that the answer carries |
| status | text | scored, unscored, refused or failed; scored exactly where score is not null |
| error | text, null | why it failed or is unscored |
| split | text, null | the split the example is from |
| repeat | int | 0 for the first answer to an example, 1 for the second, ... |
| cluster | text, null | examples of one cluster are not independent (one document, one user) |
| metadata | text | a JSON object; its fields are the slices |
| simulated | bool, null | answered by a simulator; null: unknown, and not fit for production |

`metadata` is JSON text, not a map: it means the same in Parquet, CSV and JSONL, and keeps numbers numbers.
"""

from __future__ import annotations

import csv
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import EvaluationError, disk_faults

SCHEMA = pa.schema(
    [
        pa.field("candidate", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("prompt", pa.string()),
        pa.field("output", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("valid", pa.bool_()),
        pa.field("input_tokens", pa.int64()),
        pa.field("cached_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("latency_s", pa.float64()),
        pa.field("ttft_s", pa.float64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("logprob_mean", pa.float64()),
        pa.field("logprob_min", pa.float64()),
        pa.field("margin_min", pa.float64()),
        pa.field("label_prob", pa.float64()),
        pa.field("model_requested", pa.string()),
        pa.field("model_answered", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("split", pa.string()),
        pa.field("repeat", pa.int64(), nullable=False),
        pa.field("cluster", pa.string()),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("simulated", pa.bool_()),
    ]
)
STATUSES = ("scored", "unscored", "refused", "failed")

_REQUIRED = ("candidate", "example_id", "score")
_AT_MOST_ONE = ("score", "label_prob")
_NOT_NEGATIVE = ("score", "label_prob", "input_tokens", "cached_tokens", "output_tokens", "latency_s", "ttft_s", "cost_usd", "repeat")
_BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def from_rows(rows: Iterable[Mapping[str, Any]], *, where: str = "outcomes") -> pa.Table:
    """Build a checked table of `SCHEMA`, rows in the order given.

    Args:
        rows: column name to value. Missing columns are null, `repeat` 0, `metadata` {} (a mapping or JSON text), and
            `status` scored or unscored by the score. NaN counts as null.
        where: what to call the table in messages.

    Raises:
        EvaluationError: unknown column, wrong type, value out of range, or a key that occurs twice; names row (from 1) and column.
    """
    checked = []
    for number, row in enumerate(rows, start=1):
        place = f"{where}, row {number}"
        if unknown := [str(name) for name in row if name not in SCHEMA.names]:
            raise EvaluationError(f"unknown column {unknown[0]!r}", where=place, fix="put it into metadata")
        checked.append(_row(row, place))
    return _table(checked, where)


def write(table: pa.Table, path: Path) -> None:
    """Write a table of `SCHEMA` as Parquet: complete or not at all.

    Raises:
        EvaluationError: the table is not of `SCHEMA`.
        StoreError: the disk is full or not writable.
    """
    if not table.schema.equals(SCHEMA):
        raise EvaluationError("not an outcomes table", where=str(path), fix="build it with outcomes.from_rows")
    with disk_faults(f"writing {path.name}"):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read(path: Path) -> pa.Table:
    """Read an outcomes table of anyone's making: .parquet, .csv (with a header) or .jsonl.

    Columns that `SCHEMA` does not know become fields of `metadata`. An empty CSV field is null.

    Raises:
        EvaluationError: the file is missing or damaged, a required column is missing, or what `from_rows` raises.
    """
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise EvaluationError(f"no known format ends in {path.suffix!r}", where=str(path), fix="use .parquet, .csv or .jsonl")
    checked = []
    try:
        for number, row in enumerate(reader(path), start=1):
            checked.append(_row(_fold_unknown(row, f"{path}, row {number}"), f"{path}, row {number}"))
    except FileNotFoundError as error:
        raise EvaluationError("no such file", where=str(path), fix="check the path") from error
    except OSError as error:
        raise EvaluationError(f"cannot be read: {_first_line(error)}", where=str(path), fix="check that it is a whole file") from error
    except (pa.ArrowException, csv.Error, ValueError, OverflowError, RecursionError) as error:
        raise EvaluationError(
            f"not a readable {path.suffix.lower()} file: {_first_line(error)}",
            where=str(path),
            fix="write it again",
        ) from error
    return _table(checked, str(path))


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        table = pq.read_table(file)
    _check_columns(table.column_names, path)
    for batch in table.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses prompts beyond 128 KiB; it is global, so put it back
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = csv.reader(file, strict=True)
            header = next(records, [])
            _check_columns(header, path)
            for number, record in enumerate(filter(None, records), start=1):
                if len(record) != len(header):
                    raise EvaluationError(
                        f"{len(record)} fields under a header of {len(header)}",
                        where=f"{path}, row {number}",
                        fix="quote fields with commas",
                    )
                yield {name: value or None for name, value in zip(header, record, strict=True)}
    finally:
        csv.field_size_limit(limit)


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        for line in file:
            if not line.strip():
                continue
            number += 1
            place = f"{path}, row {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise EvaluationError(f"not JSON: {_first_line(error)}", where=place, fix="one JSON object a line") from error
            if not isinstance(row, dict):
                raise EvaluationError("not a JSON object", where=place, fix="one JSON object a line")
            _check_columns([*row], place)
            yield row


def _check_columns(names: list[str], where: Path | str) -> None:
    if missing := [name for name in _REQUIRED if name not in names]:
        raise EvaluationError(
            f"no column {', '.join(map(repr, missing))}",
            where=str(where),
            fix=f"an outcomes table needs {', '.join(_REQUIRED)}",
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f"column {twice[0]!r} occurs twice", where=str(where), fix="rename one of them")


def _fold_unknown(row: dict[str, Any], place: str) -> dict[str, Any]:
    """Move columns that the schema does not know into metadata."""
    known = {name: value for name, value in row.items() if name in SCHEMA.names}
    extra = {name: None if _is_nan(value) else value for name, value in row.items() if name not in SCHEMA.names}
    if extra:
        metadata = _metadata(row.get("metadata"), place)
        if both := [name for name in extra if name in metadata]:
            raise EvaluationError(f"{both[0]!r} is a column and a field of metadata", where=place, fix="rename one of them")
        known["metadata"] = {**metadata, **extra}
    return known


def _row(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One row with every column of `SCHEMA`, of its type and in its range."""
    row: dict[str, Any] = {}
    for field in SCHEMA:
        value = raw.get(field.name)
        at = f"{place}, column {field.name}"
        if field.name == "metadata":
            row["metadata"] = _metadata_text(_metadata(value, at), at)
        elif value is None or _is_nan(value):
            row[field.name] = None
        elif field.type == pa.string():
            row[field.name] = _text(value, at)
        elif field.type == pa.bool_():
            row[field.name] = _boolean(value, at)
        else:
            number = _integer(value, at) if field.type == pa.int64() else _float(value, at)
            if (number < 0 and field.name in _NOT_NEGATIVE) or (number > 1 and field.name in _AT_MOST_ONE):
                allowed = "from 0 to 1" if field.name in _AT_MOST_ONE else "0 or more"
                raise EvaluationError(f"{number} is out of range", where=at, fix=f"{field.name} is {allowed}, or null")
            row[field.name] = number
    for name in ("candidate", "example_id"):
        if not row[name]:
            raise EvaluationError("empty", where=f"{place}, column {name}", fix=f"every row needs a {name}")
    row["repeat"] = row["repeat"] or 0
    row["status"] = row["status"] or ("unscored" if row["score"] is None else "scored")
    if row["status"] not in STATUSES:
        raise EvaluationError(f"no status {row['status'][:40]!r}", where=f"{place}, column status", fix=f"one of {', '.join(STATUSES)}")
    if (row["status"] == "scored") != (row["score"] is not None):
        raise EvaluationError(
            f"status {row['status']!r} with score {row['score']}", where=place, fix="status is scored exactly where there is a score"
        )
    return row


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _text(value: Any, at: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise EvaluationError(f"expected text, not {type(value).__name__}", where=at, fix="write it as text")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EvaluationError("not valid Unicode", where=at, fix="write it in UTF-8, without lone surrogates") from error
    return text


def _boolean(value: Any, at: str) -> bool:
    found = _BOOLEANS.get(str(value).strip().lower())
    if found is None:
        raise EvaluationError(f"expected true or false, not {repr(value)[:40]}", where=at, fix="write true or false, or leave it empty")
    return found


def _float(value: Any, at: str) -> float:
    try:
        if not isinstance(value, str | int | float):  # bool is an int: a column of right and wrong is a score
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise EvaluationError(f"expected a number, not {repr(value)[:40]}", where=at, fix="write a number, or leave it empty") from error
    if not math.isfinite(number):
        raise EvaluationError(f"{number} is not finite", where=at, fix="write a number, or leave it empty")
    return number


def _integer(value: Any, at: str) -> int:
    number = int(value) if isinstance(value, int) else _float(value, at)
    if number != int(number) or abs(number) >= 2**63:
        raise EvaluationError(f"expected a whole number, not {repr(value)[:40]}", where=at, fix="write a whole number, or leave it empty")
    return int(number)


def _metadata(value: Any, at: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"metadata is not JSON: {_first_line(error)}", where=at, fix="write a JSON object") from error
    if value is None or _is_nan(value):
        return {}
    if not isinstance(value, Mapping):
        raise EvaluationError("metadata is not a JSON object", where=at, fix="write a JSON object")
    return dict(value)


def _metadata_text(value: dict[str, Any], at: str) -> str:
    try:
        # Dates and decimals of a Parquet file become text.
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str)
        text.encode()
        return text
    except (ValueError, TypeError, RecursionError) as error:
        raise EvaluationError(f"metadata cannot be kept as JSON: {_first_line(error)}", where=at, fix="NaN is no JSON value") from error


def _table(rows: list[dict[str, Any]], where: str) -> pa.Table:
    seen: dict[tuple[str, str, int], int] = {}
    clashes = []
    for number, row in enumerate(rows, start=1):
        key = (row["candidate"], row["example_id"], row["repeat"])
        if (first := seen.setdefault(key, number)) != number:
            clashes.append(f"{key} in rows {first} and {number}")
    if clashes:
        raise EvaluationError(
            f"{len(clashes)} rows repeat the key (candidate, example_id, repeat) of an earlier one: {'; '.join(clashes[:3])}",
            where=where,
            fix="number repeated answers to one example in the column `repeat`",
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
