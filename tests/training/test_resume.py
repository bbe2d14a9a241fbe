"""kill -9 at any moment, then the same command: nothing finished is done again, and the result is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import naming
from tests.training.chain import RECIPE, artifacts, environment, make_recipe, parent_runs
from workbench.store import MANIFEST, Store

TEXT = RECIPE.replace("max_steps: 12", "max_steps: 40, dropout: 0.1").replace("eval_steps: 4", "eval_steps: 10")
STEPS = 40
COMMAND = [sys.executable, "-m", "workbench", "run", "recipe.yaml"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass(frozen=True)
class Kill:
    """When and how a run is killed.

    Attributes:
        moment: `start`, the name of a stage that has begun, or `step N`: N lines of the training log were seen in this attempt.
        delay: seconds after that.
        group: whether every process is killed at once, or only the one that was typed.
    """

    moment: str
    delay: float
    group: bool


#: Stages, and about how long each takes: a random moment within.
SPANS = {"start": 6.0, "model": 3.0, "data": 0.4, "train": 10.0, "merge": 3.0, "evaluate:base:task": 0.5, "evaluate:tuned:task": 1.5}


def kills(count: int, seed: int) -> list[Kill]:
    """Random moments, at least half of them while steps are made and checkpoints written; the later stages come later."""
    draw = random.Random(seed)
    moments = ["start", "model", "data", "train", *["step"] * max(1, count // 2), "merge", "evaluate:base:task", "evaluate:tuned:task"]
    chosen = [moments[round(index * (len(moments) - 1) / max(1, count - 1))] for index in range(count)]
    found = []
    for moment in chosen:
        if moment == "step":
            found.append(Kill(f"step {draw.randint(1, 12)}", draw.uniform(0, 0.3), draw.random() < 0.5))
        else:
            found.append(Kill(moment, draw.uniform(0, SPANS[moment]), draw.random() < 0.5))
    return found


def run_to_the_end(folder: Path, *options: str) -> None:
    done = subprocess.run([*COMMAND, *options], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def run_and_kill(folder: Path, kill: Kill) -> bool:
    """Start the command and kill it at that moment; False when it had ended before."""
    log, events = folder / "killed.log", sum(map(_lines, folder.glob(".workbench/work/train-*/events.jsonl")))
    with log.open("w") as output:
        process = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and not _reached(folder, kill, log.read_text(), events):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    time.sleep(kill.delay)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL) if kill.group else os.kill(process.pid, signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL), log.read_text()
    return running


def _reached(folder: Path, kill: Kill, said: str, events: int) -> bool:
    if kill.moment.startswith("step "):
        now = sum(map(_lines, folder.glob(".workbench/work/train-*/events.jsonl")))
        return now >= events + int(kill.moment.removeprefix("step ")) or "merge: " in said
    return kill.moment == "start" or f"{kill.moment}: " in said


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def history(folder: Path) -> dict[tuple[int, str], float]:
    """Every loss by step and name; fails if a step is there twice."""
    found: dict[tuple[int, str], float] = {}
    for event in map(json.loads, (artifacts(folder)["train"] / "history.jsonl").read_text().splitlines()):
        for name in ("loss", "eval_loss"):
            if name in event:
                assert (event["step"], name) not in found
                found[event["step"], name] = event[name]
    return found


def kill_and_compare(folder: Path, expected: dict[tuple[int, str], float], moments: Sequence[Kill]) -> int:
    """The number of runs that were really killed."""
    make_recipe(folder, text=TEXT)
    made: dict[str, int] = {}
    killed = 0
    for kill in moments:
        killed += run_and_kill(folder, kill)
        now = {path.name: (path / MANIFEST).stat().st_mtime_ns for path in folder.glob(".workbench/store/[!.]*")}
        assert made.items() <= now.items(), f"{kill}: a finished stage was made again"
        made = now
        store = Store(folder / ".workbench")
        for path in artifacts(folder).values():  # whatever bears a final name is whole
            manifest = json.loads((path / MANIFEST).read_text())
            artifact = store.find(manifest["stage"], manifest["key"])
            assert artifact is not None and not store.damaged(artifact), f"{kill}: {path.name}"
        deadline = time.monotonic() + 5
        while not kill.group and naming(folder):
            assert time.monotonic() < deadline, naming(folder)
            time.sleep(0.05)
    run_to_the_end(folder)
    now = {path.name: (path / MANIFEST).stat().st_mtime_ns for path in folder.glob(".workbench/store/[!.]*")}
    assert made.items() <= now.items()
    assert not list(folder.glob(".workbench/store/.*")), "half an artifact was left"
    found = history(folder)
    assert found.keys() == expected.keys()
    assert {key: abs(value - expected[key]) for key, value in found.items() if abs(value - expected[key]) > 1e-3} == {}
    assert len(list((folder / ".workbench" / "runs").iterdir())) == 1
    assert parent_runs(folder) == 1
    return killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    make_recipe(folder, text=TEXT)
    run_to_the_end(folder, "--until", "train")
    found = history(folder)
    assert len(found) == STEPS + STEPS // 10
    return found


def test_killed_three_times(tmp_path: Path, undisturbed: dict[tuple[int, str], float]) -> None:
    moments = [Kill("step 7", 0.05, group=True), Kill("step 9", 0.1, group=False), Kill("merge", 0.5, group=True)]
    assert kill_and_compare(tmp_path, undisturbed, moments) == 3
    facts = json.loads((artifacts(tmp_path)["train"] / MANIFEST).read_text())["facts"]
    trained = facts["attempt_tokens_per_s"] * facts["attempt_seconds"]
    whole = STEPS / 9 * facts["tokens"]  # 36 rows are 9 batches of 4
    assert trained < 0.8 * whole  # the last attempt did not begin again


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tmp_path: Path, undisturbed: dict[tuple[int, str], float], seed: int) -> None:
    moments = kills(14, seed)
    killed = kill_and_compare(tmp_path, undisturbed, moments)
    print(f"seed {seed}: {killed} of {len(moments)} runs killed: {moments}")
    assert killed >= 12
