"""A child that is started before its work is there: it waits, works when told to, and is left behind by nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import naming, wait
from workbench import child

ROOT = Path(__file__).parents[1]

#: Says that it is ready, then does as a child of `Standby` must.
WAITS = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "ready").touch()
if sys.stdin.readline():
    (folder / "events.jsonl").write_text(json.dumps({"heard": (folder / "job").read_text()}) + "\\n")
    sys.exit(3)
(folder / "left").touch()
"""


def command(folder: Path, script: str = WAITS) -> list[str]:
    return [sys.executable, "-c", script, str(folder)]


@pytest.fixture
def standby() -> Iterator[child.Standby]:
    made = child.Standby()
    yield made
    made.end()


def test_it_waits_until_its_work_is_there(standby: child.Standby, tmp_path: Path) -> None:
    heard = list[dict[str, Any]]()
    standby.start(command(tmp_path), log=tmp_path / "log")
    wait((tmp_path / "ready").exists, "the child", 20)
    assert not (tmp_path / "events.jsonl").exists()
    (tmp_path / "job").write_text("work")  # after it was started
    assert child.attend(standby.go(), events=tmp_path / "events.jsonl", on_event=heard.append) == 3
    assert heard == [{"heard": "work"}]


def test_the_one_that_waits_is_taken(standby: child.Standby, tmp_path: Path) -> None:
    """Whoever starts it for safety's sake finds it there."""
    (tmp_path / "job").touch()
    standby.start(command(tmp_path), log=tmp_path / "log")
    wait((tmp_path / "ready").exists, "the child", 20)
    (tmp_path / "ready").unlink()
    standby.start(command(tmp_path), log=tmp_path / "log")
    assert child.attend(standby.go(), events=tmp_path / "events.jsonl", on_event=lambda event: None) == 3
    assert not (tmp_path / "ready").exists(), "there was no second"


def test_one_that_has_died_is_started_again(standby: child.Standby, tmp_path: Path) -> None:
    script = "import sys; print('the last words', flush=True); sys.exit(4)"

    def again() -> int:
        standby.start(command(tmp_path, script), log=tmp_path / "log")
        return (tmp_path / "log").read_text().count("the last words")

    wait(lambda: again() >= 2, "its last words, and those of another", 20)
    assert child.attend(standby.go(), events=tmp_path / "events.jsonl", on_event=lambda event: None) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_given_up_it_is_gone(standby: child.Standby, tmp_path: Path) -> None:
    standby.start(command(tmp_path), log=tmp_path / "log")
    wait((tmp_path / "ready").exists, "the child", 20)
    assert naming(tmp_path)
    standby.end()
    assert naming(tmp_path) == {}
    standby.end()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_interrupted_at_work_it_is_gone(standby: child.Standby, tmp_path: Path) -> None:
    script = "import json, pathlib, sys, time; pathlib.Path(sys.argv[1], 'events.jsonl').write_text('{}\\n'); time.sleep(120)"

    def interrupt(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    standby.start(command(tmp_path, script), log=tmp_path / "log")
    with pytest.raises(KeyboardInterrupt):
        child.attend(standby.go(), events=tmp_path / "events.jsonl", on_event=interrupt)
    assert naming(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_kill_9_of_its_parent_leaves_no_process(tmp_path: Path) -> None:
    script = f"""
import pathlib, sys, time
from workbench.child import Standby
folder = pathlib.Path(sys.argv[1])
Standby().start([sys.executable, "-c", {WAITS!r}, str(folder)], log=folder / "log")
time.sleep(120)
"""
    parent = subprocess.Popen(command(tmp_path, script), env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait((tmp_path / "ready").exists, "the child", 20)
        assert len(naming(tmp_path)) == 2
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait(lambda: not naming(tmp_path), "the end of the child", 20)


def test_the_end_of_a_child_is_seen_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "POLL_INTERVAL", 60.0)
    started = time.monotonic()
    nothing = {"log": tmp_path / "log", "events": tmp_path / "events.jsonl", "on_event": lambda event: None}
    assert child.follow([sys.executable, "-c", "raise SystemExit(2)"], **nothing) == 2
    assert time.monotonic() - started < 30
