"""The samples are logs as the tools wrote them; see samples/README.md."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import EvaluationError, WorkbenchError
from workbench.evaluation.importers import import_log, inspect_log

SAMPLES = Path(__file__).parent / "samples"
(RESULTS,) = SAMPLES.glob("results_*.json")
(SUMS,) = SAMPLES.glob("samples_sums_*.jsonl")
(COLOURS,) = SAMPLES.glob("samples_colours_*.jsonl")
INSPECT = SAMPLES / "inspect_capitals.json"
ARCHIVE = SAMPLES / "inspect_capitals.eval"


def rows(path: Path, **options: Any) -> list[dict[str, Any]]:
    return list(import_log(path, **options).to_pylist())


# lm-evaluation-harness ---------------------------------------------------------------------------------------------


def test_lm_eval_generated_answers() -> None:
    first, second, third = rows(SUMS)
    assert first["candidate"] == first["model_requested"] == "demo/tiny"
    assert first["example_id"].startswith("sums-0-") and len({r["example_id"] for r in (first, second, third)}) == 3
    assert (first["score"], first["output"], first["reference"]) == (0.0, "lol", "4")
    assert first["prompt"] == "Q: two plus two?\nA:"
    assert json.loads(first["metadata"]) == {"task": "sums", "metric": "exact_match", "filter": "strict", "q": "two plus two?", "a": "4"}
    assert first["simulated"] is True  # the harness's dummy model


def test_lm_eval_multiple_choice_shows_the_likeliest_choice() -> None:
    for row, line in zip(rows(COLOURS), COLOURS.read_text().splitlines(), strict=True):
        sample = json.loads(line)
        assert row["score"] == sample["acc"] == float(row["output"] == row["reference"])
        assert row["reference"] == ["blue", "green"][int(sample["target"])]


def test_lm_eval_a_results_file_stands_for_all_its_tasks() -> None:
    assert {json.loads(row["metadata"])["task"] for row in rows(RESULTS)} == {"sums", "colours"}
    assert len(rows(RESULTS)) == len(rows(SUMS)) + len(rows(COLOURS))


def test_lm_eval_metric_and_filter_are_chosen_by_name() -> None:
    assert {json.loads(row["metadata"])["filter"] for row in rows(SUMS, metric="exact_match,flexible")} == {"flexible"}
    assert {json.loads(row["metadata"])["metric"] for row in rows(COLOURS, metric="acc_norm")} == {"acc_norm"}
    with pytest.raises(EvaluationError, match="one of exact_match,strict, exact_match,flexible"):
        import_log(SUMS, metric="bleu")


def test_lm_eval_without_its_results_file_takes_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "org__model"
    folder.mkdir()
    shutil.copy(SUMS, folder)
    row = rows(folder / SUMS.name)[0]
    assert row["candidate"] == "org__model" and row["simulated"] is None


def test_lm_eval_scores_that_are_none(tmp_path: Path) -> None:
    sample = json.loads(SUMS.read_text().splitlines()[0])
    path = tmp_path / SUMS.name
    path.write_text(json.dumps({**sample, "exact_match": float("nan")}))
    assert (rows(path)[0]["score"], rows(path)[0]["status"]) == (None, "unscored")
    for value in (12.5, [1, 2], "good"):
        path.write_text(json.dumps({**sample, "exact_match": value}))
        with pytest.raises(EvaluationError, match="a score is from 0 to 1"):
            import_log(path)


# Inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_json_log() -> None:
    table = {(row["example_id"], row["repeat"]): row for row in rows(INSPECT)}
    assert set(table) == {(name, epoch) for name in ("fr", "2", "boom") for epoch in (0, 1)}
    row = table["fr", 0]
    assert row["candidate"] == row["model_requested"] == row["model_answered"] == "mockllm/model"
    assert (row["score"], row["output"], row["reference"], row["prompt"]) == (1.0, "It is Paris", "Paris", "Capital of France?")
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (16, 4, 3)  # 12 new and 4 cached
    assert json.loads(row["metadata"]) == {"source": "geo"} and row["simulated"] is True
    assert table["fr", 1]["score"] == 0.0
    assert table["2", 0]["prompt"].endswith("capital of Germany?")


def test_inspect_a_sample_that_failed_has_no_score() -> None:
    failed = [row for row in rows(INSPECT) if row["example_id"] == "boom"]
    assert [(row["status"], row["score"], row["error"]) for row in failed] == [("failed", None, "ValueError('the scorer fell over')")] * 2


def test_inspect_fields_of_a_scorer_are_chosen_by_name() -> None:
    assert {row["score"] for row in rows(INSPECT, metric="graded/tone") if row["status"] == "scored"} == {0.5}
    with pytest.raises(EvaluationError, match="one of includes, graded/brevity, graded/tone"):
        import_log(INSPECT, metric="f1")


def test_inspect_eval_archive_is_read_as_it_was_written() -> None:
    assert {info.compress_type for info in zipfile.ZipFile(ARCHIVE).infolist()} == {93}  # Zstandard
    assert {(row["example_id"], row["score"]) for row in rows(ARCHIVE)} == {("fr", 1.0), ("2", 1.0)}


def repack(path: Path, *, method: int = zipfile.ZIP_DEFLATED, header: bool = True) -> Path:
    """The sample archive again, with another compression, and with or without the head of a finished run."""
    with zipfile.ZipFile(ARCHIVE) as old, zipfile.ZipFile(path, "w", method) as new:
        for info in old.infolist():
            if header or info.filename != "header.json":
                new.writestr(info.filename, inspect_log._member(old, ARCHIVE.read_bytes(), info))
    return path


def test_inspect_older_and_unfinished_archives(tmp_path: Path) -> None:
    assert rows(repack(tmp_path / "old.eval")) == rows(ARCHIVE)
    assert rows(repack(tmp_path / "unfinished.eval", header=False)) == rows(ARCHIVE)


def change(tmp_path: Path, **fields: Any) -> Path:
    log = json.loads(INSPECT.read_text())
    log["samples"] = [{**log["samples"][0], **fields}]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    return path


@pytest.mark.parametrize(
    ("value", "score"),
    [("C", 1.0), ("P", 0.5), ("I", 0.0), ("N", 0.0), ("yes", 1.0), (True, 1.0), (0.25, 0.25), (1, 1.0), (float("nan"), None)],
)
def test_inspect_values(tmp_path: Path, value: Any, score: float | None) -> None:
    (row,) = rows(change(tmp_path, scores={"grader": {"value": value}}))
    assert row["score"] == score and row["status"] == ("unscored" if score is None else "scored")


@pytest.mark.parametrize("value", [3.5, -1, "A", [1.0], None])
def test_inspect_values_that_are_no_scores(tmp_path: Path, value: Any) -> None:
    with pytest.raises(EvaluationError, match="a score is from 0 to 1"):
        import_log(change(tmp_path, scores={"grader": {"value": value}}))


def test_inspect_long_texts_are_looked_up(tmp_path: Path) -> None:
    path = change(tmp_path, input=[{"role": "user", "content": "attachment://abc"}], attachments={"abc": "a long question"})
    assert json.loads(rows(path)[0]["prompt"]) == [{"role": "user", "content": "a long question"}]


def test_inspect_invalidated_samples_are_unscored(tmp_path: Path) -> None:
    (row,) = rows(change(tmp_path, invalidation={"author": "me"}))
    assert (row["score"], row["status"]) == (None, "unscored")


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.json", "{", "not JSON"),
        ("log.json", "[]", "neither an lm-eval nor an Inspect log"),
        ("log.json", '{"eval": {}, "samples": []}', "holds no samples"),
        ("log.json", '{"eval": {}, "samples": [{"scores": {"a": {"value": 1}}}]}', "no eval.model"),
        ("log.json", '{"eval": {"model": "m"}, "samples": [{"scores": {"a": {"value": 1}}}]}', "sample 1: not shaped as Inspect writes it"),
        ("log.json", '{"eval": {"model": "m"}, "samples": [{}]}', "holds no scores"),
        ("results_1.json", '{"results": {}}', "no samples_"),
        ("samples.jsonl", "{}", "not named samples_TASK_DATE.jsonl"),
        ("samples_t_2026-01-01T00-00-00.0.jsonl", "", "holds no scores"),
        ("samples_t_2026-01-01T00-00-00.0.jsonl", "{}", "sample 1: not shaped as lm-eval writes it"),
        ("samples_t_2026-01-01T00-00-00.0.jsonl", "{}\n{", "row 2: not JSON"),
        ("log.eval", "PK and nothing", "damaged .eval archive"),
    ],
)
def test_a_wrong_log_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EvaluationError, match=message):
        import_log(tmp_path / name)


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    for name in ("no.json", "no.eval", "samples_t_2026-01-01T00-00-00.0.jsonl"):
        with pytest.raises(EvaluationError, match="cannot be read: No such file"):
            import_log(tmp_path / name)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_log, "_LARGEST_MEMBER", 1_000)
    for path in (ARCHIVE, repack_unlimited(tmp_path)):
        with pytest.raises(EvaluationError, match=r"checksum|larger than"):
            import_log(path)


def repack_unlimited(tmp_path: Path) -> Path:
    path = tmp_path / "big.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("header.json", "{}")
        new.writestr("samples/a_epoch_1.json", " " * 100_000)
    return path


def reads_or_refuses(path: Path) -> None:
    try:
        message = f"{path} was read, {import_log(path).num_rows} rows"
    except WorkbenchError as error:
        message = str(error)
    assert str(path) in message


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 200))
def test_any_damage_to_an_archive_is_refused_or_harmless(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    data = bytearray(ARCHIVE.read_bytes())
    data[at % len(data)] = byte
    path = tmp_path / "log.eval"
    path.write_bytes(data[: len(data) - cut])
    reads_or_refuses(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    field=st.sampled_from(["id", "epoch", "input", "target", "output", "scores", "metadata", "model_usage", "error", "attachments"]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.none(), max_size=2)
    | st.just({"a": 1}),
)
def test_any_value_in_any_field_is_refused_or_harmless(tmp_path: Path, field: str, value: Any) -> None:
    reads_or_refuses(change(tmp_path, **{field: value}))


def test_the_archive_reader_gives_what_zipfile_gives(tmp_path: Path) -> None:
    path = repack(tmp_path / "stored.eval", method=zipfile.ZIP_STORED)
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            assert inspect_log._member(archive, data, info) == archive.read(info)
