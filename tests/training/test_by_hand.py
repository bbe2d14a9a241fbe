"""`accelerate launch ... -m workbench run` typed by hand: every process trains, one run and one artifact come out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.chain import artifacts, environment, make_recipe, parent_runs

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
RUN = ["-m", "workbench", "run", "recipe.yaml"]


def launch(folder: Path, *options: str, run: list[str] = RUN) -> subprocess.CompletedProcess[str]:
    make_recipe(folder)
    environ = environment(HF_HOME=str(folder / "hf"))  # no config of accelerate's own from this machine
    return subprocess.run([*LAUNCH, *options, *run], cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)


def facts(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((artifacts(folder)["train"] / "artifact.json").read_text())["facts"]
    return found


def test_two_processes_train_through_torchrun(tmp_path: Path) -> None:
    """Every process is a `workbench run`; only rank 0 publishes. (Slow tests run this to the end of the chain.)"""
    done = launch(tmp_path, "--multi_gpu", "--num_processes", "2", run=[*RUN, "--until", "train"])
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path)["processes"] == 2 and facts(tmp_path)["steps"] == 12
    assert artifacts(tmp_path).keys() == {"model", "data", "train"}
    assert len(list((tmp_path / ".workbench" / "runs").iterdir())) == 1 and parent_runs(tmp_path) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--multi_gpu", "--num_processes", "2"],
        ["--num_processes", "2", "--cpu"],  # accelerate starts one `workbench run`, which starts two to train
    ],
    ids=["torchrun", "cpu"],
)
def test_two_processes(tmp_path: Path, options: list[str]) -> None:
    done = launch(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path)["processes"] == 2
    assert facts(tmp_path)["steps"] == 12
    assert {"model", "data", "train", "merge", "evaluate:base:task", "evaluate:tuned:task"} == artifacts(tmp_path).keys()
    assert len(list((tmp_path / ".workbench" / "runs").iterdir())) == 1
    assert parent_runs(tmp_path) == 1
    assert done.stdout.count("run tiny-") == 1  # one report
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_process(tmp_path: Path) -> None:
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path)["processes"] == 1 and parent_runs(tmp_path) == 1


@pytest.mark.slow
def test_every_process_leaves_when_training_is_not_wanted_or_fails(tmp_path: Path) -> None:
    done = launch(tmp_path / "data", "--multi_gpu", "--num_processes", "2", run=[*RUN, "--until", "data"])
    assert done.returncode == 0, done.stderr
    assert artifacts(tmp_path / "data").keys() == {"model", "data"}
    done = launch(tmp_path / "nan", "--multi_gpu", "--num_processes", "2", run=[*RUN, "--set", "train.learning_rate=1e30"])
    assert done.returncode != 0
    assert "error: train: " in done.stderr and "became nan" in done.stderr
    assert "train" not in artifacts(tmp_path / "nan")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Half the rows a process, gradients averaged: the same steps as one process with the whole batch, loss by loss."""
    losses = []
    for name, options, batch in (("one", (), 8), ("two", ("--multi_gpu", "--num_processes", "2"), 4)):
        run = [*RUN, "--until", "train", "--set", f"train.batch_size={batch}", "--set", "data.limit.train=32"]
        done = launch(tmp_path / name, *options, run=run)
        assert done.returncode == 0, done.stderr
        history = (artifacts(tmp_path / name)["train"] / "history.jsonl").read_text().splitlines()
        losses.append([event["loss"] for event in map(json.loads, history) if "loss" in event])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
