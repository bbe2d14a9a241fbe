"""Start `accelerate launch` for a training job and follow it; imports neither torch nor accelerate."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from workbench import child
from workbench.errors import TrainingError
from workbench.training.job import Job

#: What accelerate is told where the recipe names no config file of its own.
PLAIN = Path(__file__).with_name("accelerate.yaml")


def launched_together() -> bool:
    """Whether this process is one of those that `accelerate launch` (or torchrun) started together."""
    return "RANK" in os.environ


def processes_asked_for() -> int | None:
    """How many processes a hand-typed `accelerate launch --cpu --num_processes N` wanted; None when it started what it was asked for.

    Without MPI, accelerate 1.x starts a single process for `--cpu`, whatever N is. N then stands only in its command line.
    """
    if launched_together() or "MASTER_ADDR" not in os.environ or os.environ.get("ACCELERATE_USE_CPU") != "True":
        return None
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except OSError:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes") and (value or following).isdigit():
            return int(value or following)
    return None


def rank() -> int:
    """This process's number among those launched together; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes were launched together; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def command(job: Job, entry: str) -> list[str]:
    """The `accelerate launch` command line for a job.

    Args:
        entry: the module that every process runs, with the job file as its argument.
    """
    launch = job.launch
    options = ["--num_processes", str(launch.num_processes), "--mixed_precision", launch.mixed_precision]
    if launch.config_file:
        options += ["--config_file", str(job.recipe_folder / Path(launch.config_file).expanduser())]
    elif launch.num_processes == 1 and not _has_cuda():
        options += ["--num_machines", "1", "--dynamo_backend", "no", "--cpu"]
    else:
        options += ["--config_file", str(PLAIN), "--num_machines", "1", "--dynamo_backend", "no"]
        if launch.num_processes > 1:  # through torchrun, on CPUs too: `--cpu` would start one process (see `processes_asked_for`)
            options += ["--multi_gpu", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *options, "-m", entry, str(job.file)]


def follow(job: Job, entry: str, on_event: child.OnEvent) -> None:
    """Run a saved job to its end; its output goes to `launch.log` in the workspace.

    Args:
        on_event: called with every line of the job's `events.jsonl`, those of earlier attempts included.

    Raises:
        TrainingError: a launched process said what is wrong.
        EnvironmentFault: the processes died without saying; the end of their log is quoted.
    """
    log = job.workspace / "launch.log"
    threads = job.launch.threads or max(1, (os.cpu_count() or 1) // job.launch.num_processes)
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    code = child.follow(command(job, entry), log=log, events=job.events, on_event=on_event, environment=environment)
    fix = "if memory ran out, lower train.batch_size or set train.gradient_checkpointing; then run the same command again"
    child.outcome(job.workspace, code, what="training", log=log, kind=TrainingError, fix=fix)


def _has_cuda() -> bool:
    """Whether an NVIDIA driver with a device is there, without importing torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/proc/driver/nvidia/gpus").is_dir()
