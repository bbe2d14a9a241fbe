"""The journal alone: no MLflow in here."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workbench.tracking import Journal, environment
from workbench.tracking.journal import FILE, read


def bodies(directory: Path, kind: str | None = None) -> list[dict]:
    return [record.body for record in read(directory) if kind in (None, record.body["kind"])]


def test_same_name_and_parent_is_the_same_run_also_in_another_process(tmp_path: Path) -> None:
    first = Journal.open(tmp_path, "exp")
    parent = first.start("recipe")
    child = first.start("train", parent=parent)
    code = f"from pathlib import Path; from workbench.tracking import Journal; j = Journal.open(Path({str(tmp_path)!r}), 'exp')\n"
    code += "p = j.start('recipe'); print(p, j.start('train', parent=p), j.start('train'))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert again[:2] == [parent, child]
    assert again[2] not in (parent, child), "another parent, another run"
    assert Journal.open(tmp_path / "other", "exp").start("recipe") != parent, "another journal, another run"


def test_a_torn_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "exp")
    run = journal.start("r")
    journal.metrics(run, {"loss": 1.0})
    whole = (tmp_path / FILE).read_bytes()
    for cut in (2, 7, 40):
        (tmp_path / FILE).write_bytes(whole[:-cut])
        assert [b["kind"] for b in bodies(tmp_path)] == ["journal", "start"]
        Journal.open(tmp_path, "exp").metrics(run, {"loss": 2.0})
        assert [b["values"] for b in bodies(tmp_path, "metrics")] == [{"loss": 2.0}]
    (tmp_path / FILE).write_bytes(whole[:-1])  # only its end of line is missing: nothing of it is lost
    Journal.open(tmp_path, "exp").metrics(run, {"loss": 2.0})
    assert [b["values"] for b in bodies(tmp_path, "metrics")] == [{"loss": 1.0}, {"loss": 2.0}]


def test_killed_within_its_very_first_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"kind":"journal","id":"12')
    journal = Journal.open(tmp_path, "exp")
    journal.start("r")
    assert [b["kind"] for b in bodies(tmp_path)] == ["journal", "start"]
    assert Journal.open(tmp_path, "another").experiment == "exp"


def test_kill_9_of_the_writer_leaves_every_line_that_was_reported(tmp_path: Path) -> None:
    code = f"""
import itertools, sys
from pathlib import Path
from workbench.tracking import Journal
journal = Journal.open(Path({str(tmp_path)!r}), "exp")
run = journal.start("r")
for i in itertools.count():
    journal.metrics(run, {{f"m{{j}}": i for j in range(200)}}, step=i)
    print(i, flush=True)
"""
    promised = []
    for delay in (0.0, 0.03, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        promised += [int(line) for line in [first, *writer.stdout.read().splitlines()]]
        writer.wait()
        writer.stdout.close()
    steps = [b["step"] for b in bodies(tmp_path, "metrics")]
    assert len(promised) >= 3
    assert not set(promised) - set(steps)
    assert len(promised) <= len(steps) <= len(promised) + 3, "at most one more per process, written but not yet printed"
    assert len({b["run"] for b in bodies(tmp_path, "start")}) == 1


def test_many_writers_at_a_time(tmp_path: Path) -> None:
    def write(number: int) -> None:
        journal = Journal.open(tmp_path, "exp")
        run = journal.start(f"r{number}")
        for step in range(100):
            journal.metrics(run, {"value": number}, step=step)

    threads = [threading.Thread(target=write, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies(tmp_path, "metrics")) == 600
    assert len(bodies(tmp_path, "journal")) == 1
    assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "exp")
    run = journal.start("r")
    size = (tmp_path / FILE).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, before[1]))  # the kernel takes 1000 bytes, then refuses
    try:
        with pytest.raises(OSError, match="too large"):
            journal.text(run, "x" * 5000, "big.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / FILE).stat().st_size == size
    journal.text(run, "small", "small.txt")
    assert [b["text"] for b in bodies(tmp_path, "text")] == ["small"]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "exp")
    run = journal.start("r", tags={"lone surrogate": "\ud800"})
    journal.metrics(run, {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "none": None, "one": True})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / FILE).read_text(encoding="ascii").splitlines():
        json.loads(line, parse_constant=refuse)
    (values,) = [b["values"] for b in bodies(tmp_path, "metrics")]
    assert math.isnan(float(values.pop("nan")))
    assert {name: float(value) for name, value in values.items()} == {"inf": math.inf, "minus": -math.inf, "one": 1.0}


def test_secrets_from_the_environment_do_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'sk-"quoted"\\and-long'
    monkeypatch.setenv("SOME_API_KEY", secret)
    journal = Journal.open(tmp_path, "exp")
    run = journal.start("r")
    journal.params(run, {"command": f"call --key {secret} now"})
    journal.text(run, secret, "log.txt")
    text = (tmp_path / FILE).read_text()
    assert json.dumps(secret)[1:-1] not in text
    assert bodies(tmp_path, "params")[0]["values"]["command"] == "call --key $SOME_API_KEY now"


def test_environment_is_cheap_and_imports_no_torch() -> None:
    code = "import json, sys; from workbench.tracking import environment; e = environment()\n"
    code += "print(json.dumps({'env': e, 'heavy': [m for m in ('torch', 'mlflow', 'numpy') if m in sys.modules]}))"
    env = {**os.environ, "SOME_API_KEY": "sk-never-to-be-seen"}
    started = time.monotonic()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert time.monotonic() - started < 10
    found = json.loads(output)
    assert found["heavy"] == []
    assert "sk-never-to-be-seen" not in output
    assert found["env"]["packages"]["pytest"] == pytest.__version__
    assert found["env"]["cpus"] >= 1
    assert found["env"]["cpu"]


def test_environment_names_the_commit(tmp_path: Path) -> None:
    assert environment(tmp_path)["git"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    found = environment(tmp_path)["git"]
    assert len(found["commit"]) == 40
    assert found["changed"] is False
    (tmp_path / "file").write_text("2")
    assert environment(tmp_path)["git"]["changed"] is True
