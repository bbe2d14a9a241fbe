"""Running a plan: what is there already is found, what is missing is made, and every process does its part."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from workbench.errors import disk_faults
from workbench.plan import plan
from workbench.progress import duration, say
from workbench.recipe.load import Loaded
from workbench.record import Record
from workbench.stages import launched
from workbench.stages.stage import Report, Stage, Work
from workbench.store import Artifact, Store
from workbench.training.job import load_job
from workbench.training.launch import rank

#: Kinds of stages, which `--until` may name, in their order.
STAGES = (
    "model",
    "data",
    "outlook",
    "calibration",
    "train",
    "merge",
    "quantize",
    "tune",
    "evaluate",
    "footprint",
    "compare",
    "select",
    "gate",
)


def run(loaded: Loaded, state: Path, *, until: str | None = None) -> Path | None:
    """Run a recipe to its end, or to the end of stage `until`; what is there already is not made again.

    Started on several processes by `accelerate launch`, only rank 0 does more than train.

    Returns:
        The run's folder, which `report.read` understands; None on ranks other than 0.

    Raises:
        WorkbenchError: of every kind; finished stages are kept, and the same command continues.
    """
    # Threads that spin while they wait gain a tenth on an idle machine and lose most of their speed beside another busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    the_plan, store = plan(loaded), Store(state)
    stages = [stage for stage in the_plan.stages if until is None or STAGES.index(stage.kind) <= STAGES.index(until)]
    if rank() != 0:
        _help_to_train(stages, store)
        return None
    with ExitStack() as ready:
        _get_ahead(stages, store, ready)
        record = Record(the_plan, state)
        say(f"run {the_plan.run_id}")
        try:
            for number, stage in enumerate(stages, start=1):
                if store.find(stage.name, stage.key) is None:
                    _get_ahead(stages[number:], store, ready)
                _execute(stage, store, record)
        except BaseException as error:
            record.close("failed", "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    record.close("finished" if until in (None, STAGES[-1]) else f"stopped after {until}")
    return record.folder


def make(stage: Stage, store: Store, inputs: Mapping[str, Artifact], report: Report) -> Artifact:
    """The stage's artifact: found, or made now under its lock."""
    with store.lock(stage.name, stage.key):
        found = store.find(stage.name, stage.key)
        if found is not None:
            return found
        started = time.perf_counter()
        with store.staging(stage.name, stage.key) as staging, disk_faults(f"making artifact {stage.name}"):
            facts = stage.make(Work(inputs, staging, store.workspace(stage.name, stage.key), report, store.state))
            return store.publish(
                staging, stage.name, stage.key, ingredients=stage.ingredients, facts=facts, seconds=time.perf_counter() - started
            )


def _get_ahead(later: Sequence[Stage], store: Store, ready: ExitStack) -> None:
    """Let the first of these stages that is still to be made get ready meanwhile; what that takes is held in `ready`."""
    stage = next((one for one in later if store.find(one.name, one.key) is None), None)
    if stage is not None and stage.ahead is not None:
        with disk_faults(f"getting {stage.name} ready"):
            ready.enter_context(stage.ahead(store.workspace(stage.name, stage.key)))


def _execute(stage: Stage, store: Store, record: Record) -> None:
    """Make or find one stage's artifact, and report it."""
    run = record.started(stage)
    there = store.find(stage.name, stage.key) is not None
    say(f"{stage.name}: {'there already' if there else 'started'}")
    try:
        artifact = make(stage, store, {one.name: record.made[one.name] for one in stage.inputs}, partial(record.metrics, run))
    except BaseException:
        record.journal.end(run, "FAILED")
        raise
    if not there:
        say(f"{stage.name}: done in {duration(artifact.seconds)}")
    record.finished(stage, run, artifact, reused=there)


def _help_to_train(stages: Sequence[Stage], store: Store) -> None:
    """What ranks other than 0 do: wait until rank 0 has prepared the training, take part in it, and leave."""
    stage = next((one for one in stages if one.name == "train"), None)
    if stage is None:
        return
    job_file = store.scratch / f"{stage.name}-{stage.key}" / "job.json"
    while store.find(stage.name, stage.key) is None:
        if job_file.exists():
            launched.run(load_job(job_file))
            return
        time.sleep(0.2)
