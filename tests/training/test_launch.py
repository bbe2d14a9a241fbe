"""What `accelerate launch` is asked for, what becomes of processes that die, and that none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.processes import naming, wait
from tests.training.chain import environment
from tests.training.jobs import job
from workbench.child import read_events
from workbench.errors import EnvironmentFault, TrainingError
from workbench.training.job import Job, load_job
from workbench.training.launch import command, follow, processes_asked_for


@pytest.fixture
def small(tmp_path: Path) -> Job:
    return job(tmp_path / "work", tmp_path / "model")


def entry(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> str:
    """A module for every launched process to run; returns its name."""
    (folder / "entry_of_this_test.py").write_text(textwrap.dedent(body))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parents[2])]))
    return "entry_of_this_test"


def with_launch(made: Job, **launch: object) -> Job:
    return job(made.workspace, made.model, launch=launch)


def test_one_process(small: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = command(small, "some.module")
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert "--cpu" in words and "--multi_gpu" not in words
    assert words[words.index("--num_processes") + 1] == "1"
    assert words[words.index("--mixed_precision") + 1] == "no"
    assert words[-3:] == ["-m", "some.module", str(small.file)]


def test_several_processes(small: Job) -> None:
    words = command(with_launch(small, num_processes=3, mixed_precision="bf16"), "some.module")
    assert words[words.index("--num_processes") + 1] == "3"
    assert words[words.index("--mixed_precision") + 1] == "bf16"
    assert "--multi_gpu" in words and "--cpu" not in words
    assert words[words.index("--main_process_port") + 1] == "0"  # any free one: two runs on a machine do not meet


def test_a_config_file_is_handed_on(small: Job) -> None:
    words = command(with_launch(small, config_file="cluster.yaml"), "some.module")
    assert words[words.index("--config_file") + 1] == str(small.recipe_folder / "cluster.yaml")
    assert "--num_machines" not in words and "--cpu" not in words  # the file says


def test_accelerate_understands_every_command(small: Job, tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    (small.recipe_folder / "cluster.yaml").write_text("compute_environment: LOCAL_MACHINE\n")
    for launch in ({}, {"num_processes": 2}, {"config_file": "cluster.yaml"}):
        given = launch_command_parser().parse_args(command(with_launch(small, **launch), "some.module")[3:])
        assert given.training_script == "some.module" and given.module


@pytest.mark.parametrize("option", [["--num_processes", "5"], ["--num_processes=5"], ["--num-processes", "5"]])
def test_how_many_processes_a_hand_typed_launch_wanted(option: list[str], tmp_path: Path) -> None:
    """Read from the real command line of a real parent."""
    child = f"{sys.executable} -c 'from workbench.training.launch import processes_asked_for as p; print(p())'"
    script = f"import shlex, subprocess; subprocess.run(shlex.split({child!r}))"
    marks = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"}

    def said(*words: str, **variables: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, *words], env=environment(**variables), capture_output=True, text=True, check=True
        ).stdout.strip()

    assert said(*option, **marks) == "5"
    assert said("--cpu", **marks) == "None"
    assert said(*option) == "None"  # no launcher's variables
    assert said(*option, **marks, RANK="0") == "None"  # torchrun started what was asked for
    assert processes_asked_for() is None


def test_threads_reach_the_processes(small: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = entry(
        monkeypatch,
        tmp_path,
        """
        import json, os, pathlib, sys
        pathlib.Path(sys.argv[1]).with_name("result.json").write_text(json.dumps({"threads": os.environ["OMP_NUM_THREADS"]}))
        """,
    )
    for threads in (1, 3):
        made = with_launch(small, threads=threads)
        follow(made, module, print)
        assert json.loads((made.workspace / "result.json").read_text()) == {"threads": str(threads)}


def test_a_process_that_dies_without_a_word_is_quoted(small: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = entry(
        monkeypatch,
        tmp_path,
        """
        import os, sys
        print("the last words", file=sys.stderr, flush=True)
        os._exit(7)
        """,
    )
    with pytest.raises(EnvironmentFault, match="the last words") as caught:
        follow(small, module, print)
    assert caught.value.where == str(small.workspace / "launch.log")
    assert caught.value.exit_code == 1 and "batch_size" in (caught.value.fix or "")


def test_what_a_process_recorded_is_raised(small: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = entry(
        monkeypatch,
        tmp_path,
        """
        import json, pathlib, sys
        error = {"what": "too hot", "where": "train", "fix": "cool it"}
        pathlib.Path(sys.argv[1]).with_name("error.json").write_text(json.dumps(error))
        """,
    )
    with pytest.raises(TrainingError, match="too hot") as caught:
        follow(small, module, print)
    assert (caught.value.where, caught.value.fix) == ("train", "cool it")
    small.save()  # the next attempt
    assert not (small.workspace / "error.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_kill_9_of_the_parent_leaves_no_process(small: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The entry is the real one up to the training itself."""
    module = entry(
        monkeypatch,
        tmp_path,
        """
        import os, pathlib, sys, threading, time
        from workbench.stages import launched
        def run(job):
            (job.workspace / f"ready-{os.environ.get('RANK', 0)}").touch()
            time.sleep(120)
        launched.run = run
        launched.main()
        """,
    )
    made = with_launch(small, num_processes=count, threads=1)
    made.save()
    script = """if True:
        import pathlib, sys
        from workbench.training.job import load_job
        from workbench.training.launch import follow
        follow(load_job(pathlib.Path(sys.argv[1])), sys.argv[2], print)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(made.file), module],
        env={**environment(), "PYTHONPATH": os.environ["PYTHONPATH"]},
    )
    try:
        wait(lambda: all((made.workspace / f"ready-{rank}").exists() for rank in range(count)), "every rank", 60)
        assert len(naming(made.workspace)) > count
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait(lambda: not naming(made.workspace), "the end of every process", 5)


def test_a_job_survives_its_file(small: Job) -> None:
    assert load_job(small.file) == small


def test_events_are_read_once_and_torn_lines_never(tmp_path: Path) -> None:
    path, seen = tmp_path / "events.jsonl", []
    assert read_events(path, 0, seen.append) == 0
    path.write_text('{"step": 1}\n{"step": 2')
    position = read_events(path, 0, seen.append)
    assert seen == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    read_events(path, position, seen.append)
    assert seen == [{"step": 1}, {"step": 3}]
