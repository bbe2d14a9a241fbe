from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import EvaluationError, StoreError, WorkbenchError
from workbench.evaluation import outcomes

ROW: dict[str, Any] = {
    "candidate": "tuned",
    "example_id": "a1",
    "score": 1.0,
    "prompt": "Zwölf?\n",
    "output": '12, or "twelve"',
    "reference": "12",
    "valid": True,
    "input_tokens": 5,
    "cached_tokens": 0,
    "output_tokens": 2,
    "latency_s": 0.25,
    "ttft_s": 0.1,
    "cost_usd": 0.0,
    "logprob_mean": -0.5,
    "logprob_min": -1.5,
    "margin_min": 0.25,
    "label_prob": 0.75,
    "model_requested": "m",
    "model_answered": "m-2024",
    "status": "scored",
    "error": None,
    "split": "test",
    "repeat": 0,
    "cluster": "doc-1",
    "metadata": '{"n": 3, "source": "web"}',
    "simulated": False,
}
MINIMAL = {"candidate": "c", "example_id": "1", "score": 0.5}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_columns_are_the_designs() -> None:
    assert outcomes.SCHEMA.names == list(ROW)
    for name in outcomes.SCHEMA.names:
        assert f"| {name} |" in str(outcomes.__doc__)


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "repeat": 1, "score": None, "status": "failed", "error": "timeout", "valid": None, "simulated": None}]
    table = outcomes.from_rows(rows)
    assert table.to_pylist() == rows
    outcomes.write(table, tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    write_csv(tmp_path / "t.csv", rows)
    for name in ("t.parquet", "t.jsonl", "t.csv"):
        read = outcomes.read(tmp_path / name)
        assert read.equals(table), name
        assert read.schema.equals(outcomes.SCHEMA)


def test_the_first_three_columns_are_enough() -> None:
    scored, unscored = outcomes.from_rows([MINIMAL, {**MINIMAL, "example_id": "2", "score": None}]).to_pylist()
    assert (scored["status"], scored["repeat"], scored["metadata"], scored["simulated"]) == ("scored", 0, "{}", None)
    assert unscored["status"] == "unscored"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_unknown_columns_become_metadata(tmp_path: Path, suffix: str) -> None:
    row = {**MINIMAL, "subject": "law", "metadata": '{"level": 2}'}
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        write_csv(path, [row])
    elif suffix == ".jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    assert json.loads(outcomes.read(path).to_pylist()[0]["metadata"]) == {"level": 2, "subject": "law"}


def test_what_a_pandas_user_writes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    row = {"candidate": "c", "example_id": 7, "score": float("nan"), "valid": 1, "input_tokens": 12.0, "note": float("nan"), "day": None}
    pq.write_table(pa.Table.from_pylist([row, {**row, "example_id": 8, "score": 1.0}]), path)
    first, second = outcomes.read(path).to_pylist()
    assert (first["example_id"], first["score"], first["status"], first["valid"], first["input_tokens"]) == (
        "7",
        None,
        "unscored",
        True,
        12,
    )
    assert json.loads(second["metadata"]) == {"note": None, "day": None}


def test_right_and_wrong_count_as_scores(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({**MINIMAL, "score": True}))
    assert outcomes.read(tmp_path / "t.jsonl").to_pylist()[0]["score"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.5}, r"row 2, column score: 1.5 is out of range"),
        ({"score": -0.1}, r"row 2, column score: -0.1 is out of range"),
        ({"score": "good"}, r"row 2, column score: expected a number, not 'good'"),
        ({"score": float("inf")}, r"row 2, column score: inf is not finite"),
        ({"candidate": None}, r"row 2, column candidate: empty"),
        ({"example_id": ""}, r"row 2, column example_id: empty"),
        ({"example_id": 1.5}, r"row 2, column example_id: expected text, not float"),
        ({"input_tokens": 1.5}, r"column input_tokens: expected a whole number, not 1.5"),
        ({"input_tokens": 2**70}, r"column input_tokens: expected a whole number"),
        ({"output_tokens": -1}, r"column output_tokens: -1 is out of range"),
        ({"repeat": -1}, r"column repeat: -1 is out of range"),
        ({"latency_s": 10**400}, r"column latency_s: expected a number"),
        ({"valid": "perhaps"}, r"column valid: expected true or false, not 'perhaps'"),
        ({"simulated": 2}, r"column simulated: expected true or false, not 2"),
        ({"status": "lost"}, r"column status: no status 'lost'"),
        ({"status": "scored", "score": None}, r"status 'scored' with score None"),
        ({"status": "failed"}, r"status 'failed' with score 0.5"),
        ({"metadata": "{"}, r"column metadata: metadata is not JSON"),
        ({"metadata": "[1]"}, r"column metadata: metadata is not a JSON object"),
        ({"metadata": {"x": float("nan")}}, r"column metadata: metadata cannot be kept as JSON"),
        ({"output": "\ud800"}, r"column output: not valid Unicode"),
        ({"latency": 1.0}, r"row 2: unknown column 'latency'"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_column(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        outcomes.from_rows([MINIMAL, {**MINIMAL, "example_id": "2", **change}])


def test_a_repeated_key_is_refused_with_examples() -> None:
    with pytest.raises(EvaluationError, match=r"1 rows repeat .*\('c', '1', 0\) in rows 1 and 2"):
        outcomes.from_rows([MINIMAL, MINIMAL, {**MINIMAL, "repeat": 1}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "candidate,example_id\nc,1\n", "no column 'score'"),
        ("t.csv", "", "no column 'candidate', 'example_id', 'score'"),
        ("t.csv", "candidate,example_id,score,x,x\nc,1,1,2,3\n", "column 'x' occurs twice"),
        ("t.csv", "candidate,example_id,score\nc,1\n", "row 1: 2 fields under a header of 3"),
        ("t.csv", 'candidate,example_id,score\nc,"1,1\n', "not a readable .csv file"),
        ("t.csv", "candidate,example_id,score\nc,1,high\n", "t.csv, row 1, column score: expected a number, not 'high'"),
        ("t.jsonl", '{"candidate": "c"}\n', "row 1: no column 'example_id', 'score'"),
        ("t.jsonl", "\n[1]\n", "row 1: not a JSON object"),
        ("t.jsonl", "{\n", "row 1: not JSON"),
        ("t.jsonl", "[" * 100_000, "row 1: not JSON"),
        (
            "t.jsonl",
            '{"candidate": "c", "example_id": "1", "score": 1, "k": 1, "metadata": {"k": 2}}',
            "'k' is a column and a field of metadata",
        ),
        ("t.parquet", "PAR1 and nothing else PAR1", "not a readable .parquet file|cannot be read"),
        ("t.txt", "", "no known format ends in '.txt'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EvaluationError, match=message):
        outcomes.read(tmp_path / name)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, message in (("no.parquet", "no such file"), ("folder.csv", "cannot be read")):
        with pytest.raises(EvaluationError, match=message):
            outcomes.read(tmp_path / name)


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write_csv(tmp_path / "t.csv", [{**MINIMAL, "prompt": "x" * 300_000}])
    assert len(outcomes.read(path).to_pylist()[0]["prompt"]) == 300_000
    assert csv.field_size_limit() == before


def test_writing_replaces_the_whole_file_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    table = outcomes.from_rows([MINIMAL])
    outcomes.write(table, path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space left"):
        outcomes.write(outcomes.from_rows([ROW]), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]
    assert outcomes.read(path).equals(table)
    with pytest.raises(EvaluationError, match="not an outcomes table"):
        outcomes.write(pa.table({"candidate": ["c"]}), path)


# Fuzzing -----------------------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXT = st.text(max_size=8)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.lists(st.integers(), max_size=2)
NAMES = st.sampled_from(outcomes.SCHEMA.names) | TEXT


def reads_or_refuses(path: Path) -> None:
    try:
        table = outcomes.read(path)
    except WorkbenchError as error:
        refusal = str(error)
    else:
        assert table.schema.equals(outcomes.SCHEMA)
        outcomes.write(table, path.with_suffix(".parquet"))
        assert outcomes.read(path.with_suffix(".parquet")).equals(table)
        return
    assert str(path) in refusal


@FUZZ
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"t{suffix}").write_bytes(content)
    reads_or_refuses(tmp_path / f"t{suffix}")


@FUZZ
@given(fields=st.dictionaries(NAMES, VALUES, max_size=6), mapping=st.dictionaries(TEXT, VALUES, max_size=3) | VALUES)
def test_any_json_row(tmp_path: Path, fields: dict[str, Any], mapping: Any) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({**MINIMAL, **fields, "metadata": mapping}))
    reads_or_refuses(tmp_path / "t.jsonl")


@FUZZ
@given(rows=st.lists(st.dictionaries(NAMES, st.text(max_size=4), max_size=4), min_size=1, max_size=3))
def test_any_csv_row(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    names = list(dict.fromkeys([*MINIMAL, *(name for row in rows for name in row)]))
    full = [{**MINIMAL, "example_id": str(number), **row} for number, row in enumerate(rows)]
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(full)
    reads_or_refuses(tmp_path / "t.csv")


@FUZZ
@given(cut=st.integers(0, 5_000), at=st.integers(0, 5_000), byte=st.integers(0, 255))
def test_any_damage_to_a_parquet_file(tmp_path: Path, cut: int, at: int, byte: int) -> None:
    path = tmp_path / "whole.parquet"
    if not path.exists():
        outcomes.write(outcomes.from_rows([ROW, MINIMAL]), path)
    damaged = bytearray(path.read_bytes())
    damaged[at % len(damaged)] = byte
    target = tmp_path / "t.parquet"
    target.write_bytes(damaged[: len(damaged) - cut % 50 * (cut % 2)])
    reads_or_refuses(target)
