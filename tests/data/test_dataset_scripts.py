"""The scripts of data/ on small files of the published form."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"
ROWS = [("When?", "card_arrival"), ("where is it?", "card_arrival"), ("WHEN?", "card_arrival"), ("Lost", "lost_card")]


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(DATA.parent)}  # the tree under test, installed or not
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_banking77(tmp_path: Path, form: str) -> None:
    test = [("Where is it?", "card_arrival"), ("Stolen", "lost_card")]
    for split, rows in (("train", ROWS), ("test", test)):
        if form == "csv":
            text = "text,category\n" + "".join(f"{text},{label}\n" for text, label in rows)
        else:
            text = "".join(json.dumps({"text": text, "label": 1, "label_text": label}) + "\n" for text, label in rows)
        (tmp_path / f"{split}.{form}").write_text(text)
    done = run(DATA / "banking77" / "make.py", "--from", str(tmp_path), "--out", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    train, made = ([json.loads(line) for line in (tmp_path / "made" / f"{s}.jsonl").read_text().splitlines()] for s in ("train", "test"))
    assert train == [{"text": "When?", "label": "card_arrival"}, {"text": "Lost", "label": "lost_card"}]
    assert made == [{"text": text, "label": label} for text, label in test]


def test_banking77_without_its_files(tmp_path: Path) -> None:
    done = run(DATA / "banking77" / "make.py", "--from", str(tmp_path))
    assert done.returncode == 2
    assert "neither test.csv nor test.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_sarcasm_counts() -> None:
    script = runpy.run_path(str(DATA / "sarcasm" / "fetch.py"))
    counts = script["report"](DATA / "sarcasm" / "sample.jsonl")
    assert (counts["rows"], counts["distinct"], counts["conflicts"]) == (20, 20, 0)
    sample = [json.loads(line)["ideal"] for line in (DATA / "sarcasm" / "sample.jsonl").read_text().splitlines()]
    assert counts["sarcastic"] == sample.count("1")


def test_the_card_and_the_script_name_one_source() -> None:
    script = runpy.run_path(str(DATA / "sarcasm" / "fetch.py"))
    assert script["SOURCE"] in (DATA / "sarcasm" / "README.md").read_text()
