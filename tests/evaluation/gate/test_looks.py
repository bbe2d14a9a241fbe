from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.disk import remount, small_disk
from workbench.errors import StoreError
from workbench.evaluation import outcomes
from workbench.evaluation.gate import looks


def test_looks_are_numbered_by_subject_and_test_set(tmp_path: Path) -> None:
    state = tmp_path / "state"
    numbers = [
        looks.take(state, test, subject, 0.05).number for test, subject in (("t", "a"), ("t", "b"), ("u", "a"), ("t", "a"), ("t", "c"))
    ]
    assert numbers == [1, 2, 1, 1, 3]
    assert len((state / looks.FILE).read_text().splitlines()) == 4


def test_all_looks_together_err_no_more_than_alpha(tmp_path: Path) -> None:
    assert looks.take(tmp_path, "t", "a", 0.05).alpha == pytest.approx(0.0303964, rel=1e-5)
    assert looks.take(tmp_path, "t", "b", 0.05).alpha == pytest.approx(0.0303964 / 4, rel=1e-5)
    assert 0.0499 < sum(looks.level(0.05, k) for k in range(1, 2_000)) < 0.05


def take_many(state: Path, worker: int) -> list[int]:
    return [looks.take(state, "t", f"{worker}-{number}", 0.05).number for number in range(40)]


def test_processes_at_the_same_time_never_share_a_look(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(take_many, [(tmp_path, worker) for worker in range(2)])
    assert sorted(number for numbers in found for number in numbers) == list(range(1, 81))


def test_a_killed_writer_costs_nothing_but_its_own_line(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from pathlib import Path; from workbench.evaluation.gate import looks\n"
        "for n in itertools.count(): print(looks.take(Path(sys.argv[1]), 't', f'{sys.argv[2]}-{n}', 0.05).number, flush=True)"
    )
    told: list[int] = []
    chance = random.Random(6)
    for attempt in range(3):
        command = [sys.executable, "-c", code, str(tmp_path), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told.append(int(process.stdout.readline()))
            time.sleep(chance.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().splitlines()]
    assert told == sorted(set(told))
    assert looks.take(tmp_path, "t", "last", 0.05).number > told[-1]


@pytest.mark.parametrize("torn", ['{"test": "t", "subj', "\x00\x00", "[1]\n", '{"test": "t"}\n'])
def test_a_torn_line_is_passed_over(tmp_path: Path, torn: str) -> None:
    looks.take(tmp_path, "t", "a", 0.05)
    with (tmp_path / looks.FILE).open("a") as file:
        file.write(torn)
    assert looks.take(tmp_path, "t", "b", 0.05).number == 2
    assert looks.take(tmp_path, "t", "a", 0.05).number == 1
    assert json.loads((tmp_path / looks.FILE).read_text().splitlines()[-1]) == {"test": "t", "subject": "b"}


def test_a_read_only_state_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        remount(disk, "ro")
        with pytest.raises(StoreError, match="read-only while counting the look"):
            looks.take(disk, "t", "a", 0.05)


def test_digests() -> None:
    rows = [{"candidate": "x", "example_id": str(number), "score": number % 2, "reference": "r"} for number in range(4)]
    table, again = outcomes.from_rows(rows), outcomes.from_rows(reversed(rows))
    assert looks.test_digest(table) == looks.test_digest(again)
    assert looks.subject_digest(table) == looks.subject_digest(again)
    other = outcomes.from_rows([{**row, "score": None} for row in rows])
    assert looks.test_digest(table) == looks.test_digest(other)  # whatever was answered, it is the same test set
    assert looks.subject_digest(table) != looks.subject_digest(other)
    assert looks.test_digest(table) != looks.test_digest(outcomes.from_rows(rows[:3]))
    assert looks.test_digest(table) != looks.test_digest(outcomes.from_rows([{**row, "reference": "s"} for row in rows]))
