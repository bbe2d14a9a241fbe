"""A file's rows as mappings, whatever the row's format: JSONL, CSV, TSV or Parquet.

Row numbers count from 1: lines of a JSONL file, records below the header of a CSV file, rows of a Parquet file.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from workbench.data.problems import Problems, excerpt
from workbench.data.values import MAX_DEPTH, plain
from workbench.errors import DataError, EnvironmentFault

Row = dict[str, Any]

_MAX_CELL = 50_000_000  # characters; csv's own limit of 131,072 is less than one long prompt


def rows(path: Path, problems: Problems) -> Iterator[tuple[int, Row]]:
    """Yield every readable row with its number; note the others in `problems`.

    Raises:
        DataError: the file as a whole cannot be read: missing, of an unknown kind, not UTF-8, damaged.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"a data file cannot be of the kind {path.suffix!r}", where=str(path), fix=f"use one of {', '.join(_READERS)}")
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "there is no such file"
        raise DataError(what, where=str(path), fix="correct the path")
    try:
        yield from read(path, problems)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror or error}", where=str(path), fix="check the file's permissions") from error


def _jsonl(path: Path, problems: Problems) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = _json_row(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except DataError as problem:
                problems.add(number, problem)
                continue
            if row is not None:
                yield number, row


def _json_row(line: bytes) -> Row | None:
    """One line of a JSONL file; None for a blank one."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise DataError(
            "it is UTF-16, not UTF-8" if utf16 else f"byte {error.start + 1} is not UTF-8", fix="save the file as UTF-8"
        ) from error
    if not text.strip():
        return None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _refuse_depth(text)
    try:
        row = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        array = text.lstrip().startswith("[")
        fix = "write one JSON object per line (`jq -c '.[]'` turns an array into lines)" if array else "repair the line"
        raise DataError(f"it is not JSON: {error.msg} at character {error.pos + 1}", fix=fix) from error
    except UnicodeEncodeError as error:
        raise DataError("an escape such as \\ud800 stands for half a character", fix="write the whole surrogate pair") from error
    except RecursionError as error:
        raise DataError("it is nested too deeply", fix="flatten the row") from error
    except ValueError as error:  # an integer of more than 4,300 digits
        raise DataError("a number is too long", fix="write it as text, in quotes") from error
    if not isinstance(row, dict):
        raise DataError(f"it is a JSON {type(row).__name__}, not an object", fix="write one JSON object per line")
    return row


def _refuse_depth(text: str) -> None:
    """Refuse brackets (outside strings) that open more than `MAX_DEPTH` levels."""
    depth, quoted, escaped = 0, False, False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise DataError(f"it is nested deeper than {MAX_DEPTH} levels", fix="flatten the row")
        elif character in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the key {excerpt(twice)} stands twice in one object", fix="keep one of them")
    return row


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise DataError(f"{excerpt(number)} is too large for a number", fix="write it as text, in quotes")
    return value


def _no_constant(name: str) -> NoReturn:
    raise DataError(f"{name} is not JSON", fix="write null, or leave the field out")


def _csv(path: Path, problems: Problems) -> Iterator[tuple[int, Row]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError("it is not UTF-8", where=f"{path}:{line}", fix="save the file as UTF-8") from error
    csv.field_size_limit(_MAX_CELL)
    records = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    number = 0
    try:
        header = next((record for record in records if record), [])
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"the header names {twice[0]!r} twice", where=str(path), fix="give every column a name of its own")
        for record in records:
            if not record:
                continue
            number += 1
            if len(record) == len(header):
                yield number, dict(zip(header, record, strict=True))
            else:
                what = f"it has {len(record)} cells, but the header names {len(header)}"
                problems.add(number, DataError(what, fix="quote cells that hold commas or quotes"))
    except csv.Error as error:
        where = f"{path}:{records.line_num}"
        raise DataError(f"it is not CSV: {error}", where=where, fix="quote cells that hold commas, quotes or line breaks") from error


def _parquet(path: Path, problems: Problems) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EnvironmentFault(
            "reading Parquet needs the package pyarrow", where=str(path), fix="pip install 'workbench[train]'"
        ) from error

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError("two columns have the same name", where=str(path), fix="give every column a name of its own")
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    try:
                        row: Row = plain(values)
                    except DataError as problem:
                        problems.add(number, problem)
                    else:
                        yield number, row
    # ValueError and OverflowError: a timestamp or decimal that Python cannot hold
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        what = f"it cannot be read as Parquet after row {number}: {excerpt(str(error), 200)}"
        raise DataError(what, where=str(path), fix="write the file again, with columns of text and numbers") from error


_READERS: dict[str, Callable[[Path, Problems], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
