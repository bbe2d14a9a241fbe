"""A managed fine-tune beside a model of one's own, against the real simulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.playing import request, state
from tests.support.judged import OWN, judged, sets, simulator
from tests.support.workplace import NOBODY, Workplace

BASE = "gpt-4.1-mini-2025-04-14"
TUNE = f"{{model: {BASE}, epochs: 2, poll_s: 0.05, training_price: 5, price: {{input: 0.8, output: 3.2}}}}"
QUICK = {"queued_s": 0.1, "running_s": 0.2, "accuracy": 1.0}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Workplace:
    return judged(tmp_path / "desk", tiny_model)


def asked(url: str, more: str = "") -> list[str]:
    return sets(f"{OWN.format(url=url)[:-1]}, fine_tune: {TUNE}{more}}}")


def jobs(url: str) -> list[dict[str, Any]]:
    return list(request(url, "GET", "/fine_tuning/jobs").body["data"])


def test_it_is_a_candidate_with_a_verdict_and_a_cost(desk: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOSED_KEY", "closed-key-0123456789abcdef")
    with simulator(desk, fine_tuning=QUICK, keyless=False, api_key_env="CLOSED_KEY") as url:
        said = desk("run", "desk.yaml", "--json", *asked(url, ", api_key_env: CLOSED_KEY"))
        assert said.code == 0, said.err
        before = (desk.folder / "log.jsonl").read_text()
        again = desk("run", "desk.yaml", "--json", *asked(url, ", api_key_env: CLOSED_KEY"))
        assert (desk.folder / "log.jsonl").read_text() == before
        trained = state(url)["training_cost_usd"]
    report = said.json
    assert [(row["name"], row["kind"]) for row in report["candidates"]] == [
        ("base", "base"), ("baseline", "baseline"), ("managed", "managed")
    ]  # fmt: skip
    managed = report["managed"]
    assert managed["model"].startswith(f"ft:{BASE}:simulated:workbench:")
    assert (managed["base"], managed["simulated"], managed["rows"]) == (BASE, True, report["data"]["sizes"]["train"])
    assert managed["cost_usd"] == pytest.approx(trained)
    assert managed["cost_usd"] == pytest.approx(managed["trained_tokens"] * 5e-6)
    row = report["candidates"][2]
    assert (row["score"], row["n"], row["versions"][0]["model"]) == (1.0, 41, managed["model"])
    gate = managed["gate"]
    assert (gate["verdict"], gate["simulated"], gate["candidate"], gate["look"]) == ("PASS", True, "managed", 2)
    assert gate["difference"] == pytest.approx(1.0 - report["candidates"][1]["score"])
    assert report["gate"]["subject"] == "base", "the exit code is that of a model of one's own"
    assert again.json["managed"] == managed

    text = " ".join(desk("show").out.split())
    assert f"managed fine-tune: SIMULATED {managed['model']}, {managed['trained_tokens']} trained tokens, $" in text
    assert "Its weights, its version and the training rows are with the provider" in text
    assert "managed fine-tune at the gate: SIMULATED PASS: managed is as good as baseline" in text
    kept = b"".join(path.read_bytes() for path in desk.state.rglob("*") if path.is_file())
    assert b"closed-key-0123456789abcdef" not in kept
    exported = [path.read_text().splitlines() for path in desk.state.glob("managed/*/training.jsonl")]
    first = json.loads(exported[0][0])["messages"]
    assert [message["role"] for message in first] == ["user", "assistant"]
    assert first[1]["content"] in ("yes", "no")


def test_killed_in_the_middle_it_does_not_pay_twice(desk: Workplace) -> None:
    with simulator(desk, fine_tuning={**QUICK, "queued_s": 0.1, "running_s": 15}) as url:
        command = [sys.executable, "-m", "workbench", "run", "desk.yaml", "--json", *asked(url)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=desk.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not jobs(url) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (job,) = jobs(url)
        assert job["status"] in ("queued", "running")
        answered = state(url)["answered"]
        said = desk("run", "desk.yaml", "--json", *asked(url))
        assert said.code == 0, said.err
        assert [one["id"] for one in jobs(url)] == [job["id"]] == [said.json["managed"]["job"]]
        assert len(request(url, "GET", "/files").body["data"]) == 1
        assert state(url)["answered"] == answered + 41, "only the tuned model was asked, the baseline's answers were there"


def test_what_it_needs_is_said_first(desk: Workplace) -> None:
    url = "http://127.0.0.1:9"
    none = ["data.split.train=0", "data.split.test=0.7"]
    said = desk("run", "desk.yaml", *asked(url), *sets(*none))
    assert said.code == 2
    assert "the split 'train' is empty" in said.err
    assert not (desk.state / "transcripts").exists()
    said = desk("run", "desk.yaml", *asked(url), *sets("baseline.fine_tune.model=gpt-4.1-mini"))
    assert said.code == 2
    assert "`gpt-4.1-mini` is not a pinned version" in said.err


def test_its_budget_holds_before_anything_is_uploaded(desk: Workplace) -> None:
    with simulator(desk, fine_tuning=QUICK) as url:
        said = desk("run", "desk.yaml", *asked(url), *sets("baseline.fine_tune.budget_usd=0.001"))
        assert said.code == 2
        assert "for 2 epochs may cost" in said.err
        assert jobs(url) == []
        assert request(url, "GET", "/files").body["data"] == []
