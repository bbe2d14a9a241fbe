"""The verbs `gate` and `simulate`; what a script relies on (streams, exit codes, signals) with processes of their own."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.playing import ask, references, state
from tests.support.workplace import Said, Workplace

WORKBENCH = [sys.executable, "-m", "workbench"]


def said(folder: Path, *arguments: str) -> Said:
    done = subprocess.run([*WORKBENCH, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


def write(path: Path, name: str, scores: Sequence[Any], start: int = 0) -> None:
    """What somebody else's spreadsheet has: three columns, and a field of their own."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["candidate", "example_id", "score", "source"])
        rows.writerows([name, f"e{number}", score, "ab"[number % 2]] for number, score in enumerate(scores, start))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("foreign")
    write(made / "gpt.csv", "gpt", [1] * 270 + [0] * 30)
    write(made / "tuned.csv", "tuned", [1] * 265 + [0] * 15 + [1] * 10 + [0] * 10)
    write(made / "poor.csv", "poor", [1] * 200 + [0] * 100)
    write(made / "hazy.csv", "hazy", [1] * 250 + [0] * 40 + [1] * 10)
    return made


def arguments(candidate: str, *more: str, baseline: str = "gpt.csv", margin: str = "0.05") -> list[str]:
    return ["gate", "--candidate", candidate, "--baseline", baseline, "--margin", margin, *more]


@pytest.mark.parametrize(("file", "verdict", "code"), [("tuned.csv", "PASS", 0), ("poor.csv", "FAIL", 3), ("hazy.csv", "INCONCLUSIVE", 4)])
def test_two_foreign_tables(folder: Path, file: str, verdict: str, code: int) -> None:
    found = said(folder, *arguments(file, "--json", "--slice", "source"))
    assert (found.code, found.err) == (code if verdict != "PASS" else found.code, "")
    gate = found.json
    assert {"verdict", "difference", "ci_low", "ci_high", "margin", "alpha", "n", "simulated"} <= gate.keys()
    assert (gate["comparison"], gate["n"], gate["margin"], gate["alpha"], gate["simulated"]) == (verdict, 300, 0.05, 0.05, None)
    assert [one["name"] for one in gate["slices"]] == ["source=a", "source=b"]
    assert found.code == {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}[gate["verdict"]]
    assert ((gate["ci_low"] > -0.05), (gate["ci_high"] < -0.05)) == (verdict == "PASS", verdict == "FAIL")
    assert not (folder / ".workbench").exists(), "tables from anywhere are not counted unless asked"


def test_in_words(folder: Path) -> None:
    plain = said(folder, *arguments("tuned.csv"))
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.startswith("PASS: tuned is as good as gpt, or worse by less than 5 points\n")
    assert "it is not known whether these outcomes are simulated" in plain.out
    assert "mean score 91.7% against 90.0% on the same 300 examples: +1.67 points" in plain.out
    worse = Workplace(folder)(*arguments("hazy.csv"))
    assert worse.code == 4
    assert worse.out.startswith("INCONCLUSIVE: these 300 examples do not show whether hazy is as good as gpt")
    assert "more examples would let it pass 4 times in 5" in worse.out


def test_too_few_examples_still_get_an_answer(folder: Path) -> None:
    write(folder / "few.csv", "few", [1] * 20)
    write(folder / "same.csv", "same", [1] * 20)
    found = Workplace(folder)(*arguments("few.csv", "--json", baseline="same.csv", margin="0.03"))
    assert (found.code, found.json["verdict"], found.json["too_small"]) == (4, "INCONCLUSIVE", True)


def test_looks_are_counted_on_request(folder: Path, tmp_path: Path) -> None:
    for name in ("gpt.csv", "tuned.csv", "hazy.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    looks = [
        Workplace(tmp_path)(*arguments(name, "--count-look", "--json")).json["look"] for name in ("tuned.csv", "hazy.csv", "tuned.csv")
    ]
    assert looks == [1, 2, 1]


REFUSALS = {
    "a missing file": (["gone.csv"], r"gone.csv: no such file"),
    "other examples": (
        ["shifted.csv"],
        "the tables are not about the same examples: 2 only the candidate has (e300, e301) and 2 only the baseline has (e0, e1); 298 are",
    ),
    "an id twice": (["twice.csv"], "1 rows repeat the key (candidate, example_id, repeat) of an earlier one: ('twice', 'e0', 0)"),
    "NaN in CSV": (["nan.csv"], "nan.csv, row 2, column score: nan is not finite"),
    "NaN in Parquet": (["nan.parquet", "--unscored", "refuse"], "1 of the candidate's rows and 0 of the baseline's have no score"),
    "no such slice": (["tuned.csv", "--slice", "topic"], "no example has the field 'topic' in its metadata"),
    "no such floor": (["tuned.csv", "--floor", "speed=1"], "floors.speed"),
    "no margin at all": (["tuned.csv", "--margin", "0"], "margin is 0.0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(folder / "shifted.csv", "shifted", [1] * 300, start=2)
    write(folder / "twice.csv", "twice", [1] * 300)
    with (folder / "twice.csv").open("a") as file:
        file.write("twice,e0,1,a\n")
    write(folder / "nan.csv", "nan", [1, "nan", *[1] * 298])
    rows = [{"candidate": "nan", "example_id": f"e{number}", "score": float("nan") if number == 1 else 1.0} for number in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "nan.parquet")
    return folder


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_judged(spoilt: Path, case: str) -> None:
    (file, *more), says = REFUSALS[case]
    found = Workplace(spoilt)(*arguments(file, *more, "--json"))
    assert (found.code, found.out) == (2, "")
    assert says in found.err, found.err
    assert "\n  fix: " in found.err


def test_a_refusal_is_an_exit_code(spoilt: Path) -> None:
    found = said(spoilt, *arguments("shifted.csv", "--json"))
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: the tables are not about the same examples")


def test_nan_in_parquet_is_a_row_without_a_score_and_said(spoilt: Path) -> None:
    """Parquet's writers use it for what is missing. It counts against the candidate, and is never silent."""
    found = Workplace(spoilt)(*arguments("nan.parquet"))
    assert found.code == 0
    assert "mean score 99.7% against 90.0%" in found.out
    assert "without a score: 1 of the candidate's rows, 0 of the baseline's (1 unscored); they count against the candidate" in found.out


def test_simulate_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    references(tmp_path)
    (tmp_path / "settings.yaml").write_text("references: references.jsonl\naccuracy: 1.0\n")
    command = [*WORKBENCH, "simulate", "settings.yaml", "--set", "log=log.jsonl", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("SIMULATED closed model at http://127.0.0.1:")
        url = line.split()[-1]
        answer = ask(url, "question 1")
        assert answer.status == 200
        assert answer.headers["x-simulated"] == "true"
        assert answer.body["choices"][0]["message"]["content"] == "glad"
        assert state(url)["answered"] == 1
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")
    assert len([json.loads(entry) for entry in (tmp_path / "log.jsonl").read_text().splitlines()]) == 1


def test_simulate_says_what_is_wrong(tmp_path: Path) -> None:
    for words, says in (
        (["gone.yaml"], "gone.yaml: cannot be read"),
        (["--set", "accuracy=2"], "--set accuracy"),
        (["--set", "references=gone.jsonl"], "gone.jsonl"),
    ):
        found = Workplace(tmp_path)("simulate", *words)
        assert (found.code, found.out) == (2, "")
        assert says in found.err
        assert "\n  fix: " in found.err
