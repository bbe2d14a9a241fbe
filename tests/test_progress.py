"""Progress: lines in a log, a bar on a terminal, never on standard output."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from workbench import progress
from workbench.progress import duration, say, track

WORK = """
import time
from workbench.progress import track
with track("training", 4) as advance:
    for step in range(1, 5):
        time.sleep(0.15)
        advance(step, f"loss {1 / step:.2f}")
print("result")
"""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (0.6, "0:01"), (75, "1:15"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]no markup[/bold] " + "a long line is not broken " * 10
    say(text)
    captured = capsys.readouterr()
    assert captured.err == f"{text}\n"
    assert captured.out == ""


def test_a_log_gets_a_line_now_and_then_with_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.1)
    with track("answering", 10) as advance:
        for done in (0, 1, 2, 3):  # at once: too soon for a line
            advance(done)
        time.sleep(0.12)
        advance(5, "loss 0.5")
        advance(6)
        time.sleep(0.12)
        advance(0)  # nothing done yet: no time left can be said
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  answering: 5/10, 0:00 left, loss 0.5", "  answering: 0/10"]


def test_the_time_left_is_the_pace_so_far(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("training", 100) as advance:
        now[0] += 20
        advance(10)
    assert capsys.readouterr().err == "  training: 10/100, 3:00 left\n"


def test_what_an_earlier_attempt_did_is_no_pace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("training", 100, begin=60) as advance:
        now[0] += 20
        advance(70)
    assert capsys.readouterr().err == "  training: 70/100, 1:00 left\n"


def test_a_terminal_gets_a_bar_on_standard_error() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=follower, text=True, env=environment)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(leader)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out == "result\n"
    text = seen.decode()
    assert "training" in text
    assert "4/4" in text
    assert "eta" in text
    assert "loss 0.25" in text


def test_a_log_of_short_work_stays_quiet() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "")
