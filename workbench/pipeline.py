"""The stage graph of a recipe: what depends on what, what is there already, what is made now, and what the run reports."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from workbench.digest import digest
from workbench.errors import RecipeError, WorkbenchError, disk_faults
from workbench.evaluation.metrics import scorer
from workbench.progress import duration, say
from workbench.recipe.load import Loaded
from workbench.recipe.resolved import dump
from workbench.recipe.schema import Split
from workbench.sources.fetch import Materialised, default_cache, materialise
from workbench.sources.reference import parse
from workbench.stages import launched
from workbench.stages.data import data_stage, guard_stage
from workbench.stages.evaluate import Candidate, evaluate_stages
from workbench.stages.merge import merge_stage
from workbench.stages.model import model_stage
from workbench.stages.stage import Stage, Work
from workbench.stages.train import train_stage
from workbench.store import Artifact, Store
from workbench.tracking import Journal, environment, sync, sync_all
from workbench.training.job import load_job
from workbench.training.launch import launched_together, processes_asked_for, rank, world_size

#: Stages that `--until` may name, in their order.
STAGES = ("model", "data", "train", "merge", "evaluate")

#: Seconds between two attempts to bring MLflow up to date while a stage runs.
SYNC_INTERVAL = 30.0


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for.

    Attributes:
        loaded: the recipe.
        stages: in an order in which every stage comes after its inputs.
        candidates: what is evaluated.
        evaluations: the stage of each candidate and set, by candidate name and set name.
        sources: what was fetched, by the recipe key that names it.
    """

    loaded: Loaded
    stages: tuple[Stage, ...]
    candidates: tuple[Candidate, ...]
    evaluations: Mapping[str, Mapping[str, Stage]]
    sources: Mapping[str, Materialised]

    @property
    def run_id(self) -> str:
        """The same for the same recipe on the same inputs and libraries, so that a killed run is continued, not begun again."""
        return f"{self.loaded.recipe.name}-{digest([[stage.key for stage in self.stages], self.loaded.recipe.tracking.model_dump()])[:10]}"


def plan(loaded: Loaded) -> Plan:
    """Fetch the sources of a recipe and lay out its stages. Nothing is computed yet.

    Raises:
        SourceError, EnvironmentFault: a source cannot be had.
        RecipeError: the recipe asks for a stage that this version does not have.
    """
    processes = world_size() if launched_together() else processes_asked_for()
    if processes is not None:  # whoever launched decided how many there are
        launch = loaded.recipe.launch.model_copy(update={"num_processes": processes})
        loaded = dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"launch": launch}))
    recipe = loaded.recipe
    if recipe.quantize:
        where = loaded.origins["quantize", 0, "method"].where
        fix = "leave `quantize` out of this run; `workbench check --preview` already says whether it would work"
        raise RecipeError([WorkbenchError("this version checks `quantize` but does not run it yet", where=where, fix=fix)])
    sources = fetch_sources(loaded)
    model, data, guards = prepared(loaded, sources)
    stages, candidates = [model, data, *guards.values()], [Candidate("base", "base", model)]
    if recipe.train is not None:
        train = train_stage(loaded, recipe.train, model, data)
        stages.append(train)
        if recipe.train.method == "full":
            candidates.append(Candidate("tuned", "full", train, train))
        else:
            merge = merge_stage(loaded, model, data, train)
            stages.append(merge)
            candidates.append(Candidate("tuned", "merged", merge, train))
    evaluations = {candidate.name: evaluate_stages(loaded, candidate, data, guards) for candidate in candidates}
    stages += [stage for sets in evaluations.values() for stage in sets.values()]
    return Plan(loaded, tuple(stages), tuple(candidates), evaluations, sources)


def prepared(loaded: Loaded, sources: Mapping[str, Materialised]) -> tuple[Stage, Stage, dict[str, Stage]]:
    """The stages `model` and `data`, and the stage of each guard set by its name: what all else stands on, and next to free.

    Raises:
        EvaluationError: a metric lacks what it needs, such as a function that can be imported; better said before training than after.
    """
    recipe = loaded.recipe
    for task in [recipe.task, *(guard.task for guard in recipe.evaluate.guards if guard.task is not None)]:
        scorer(task, base=loaded.base)
    held_out = {cast(Split, key.rpartition(".")[2]): file for key, file in sources.items() if key.startswith("data.held_out.")}
    data = data_stage(loaded, sources["data.source"], held_out)
    guards = {
        guard.name: guard_stage(loaded, guard, sources[f"evaluate.guards.{index}.source"], data)
        for index, guard in enumerate(recipe.evaluate.guards)
    }
    return model_stage(loaded, sources["model.source"]), data, guards


def fetch_sources(loaded: Loaded) -> dict[str, Materialised]:
    """Everything the recipe names, made files on this machine, by the key that names it."""
    recipe = loaded.recipe
    texts: dict[str, str] = {"model.source": recipe.model.source, "data.source": recipe.data.source}
    texts |= {f"data.held_out.{split}": text for split, text in recipe.data.held_out.model_dump().items() if text is not None}
    texts |= {f"evaluate.guards.{index}.source": guard.source for index, guard in enumerate(recipe.evaluate.guards)}
    found = {}
    for key, text in texts.items():
        trust = key == "model.source" and recipe.model.trust_remote_code
        found[key] = materialise(parse(text, base=loaded.base), cache=default_cache(), hub=recipe.hub, trust_remote_code=trust)
        for warning in found[key].warnings:
            say(f"warning: {key}: {warning}")
    return found


def run(loaded: Loaded, state: Path, *, until: str | None = None) -> Path | None:
    """Run a recipe to its end, or to the end of stage `until`; what is there already is not made again.

    Started on several processes by `accelerate launch`, only rank 0 does more than train.

    Returns:
        The run's folder, which `report.read` understands; None on ranks other than 0.

    Raises:
        WorkbenchError: of every kind; finished stages are kept, and the same command continues.
    """
    the_plan = plan(loaded)
    store = Store(state)
    if rank() != 0:
        if until in (None, *STAGES[STAGES.index("train") :]):
            _help_to_train(the_plan, store)
        return None
    return _Run(the_plan, store, state).execute(until)


def make(stage: Stage, store: Store, inputs: Mapping[str, Artifact], report: Any) -> Artifact:
    """The stage's artifact: found, or made now under its lock."""
    with store.lock(stage.name, stage.key):
        found = store.find(stage.name, stage.key)
        if found is not None:
            return found
        started = time.perf_counter()
        with store.staging(stage.name, stage.key) as staging, disk_faults(f"making artifact {stage.name}"):
            facts = stage.make(Work(inputs, staging, store.workspace(stage.name, stage.key), report))
            return store.publish(
                staging, stage.name, stage.key, ingredients=stage.ingredients, facts=facts, seconds=time.perf_counter() - started
            )


class _Run:
    """One execution of a plan on rank 0."""

    def __init__(self, the_plan: Plan, store: Store, state: Path) -> None:
        self.plan, self.store, self.state = the_plan, store, state
        self.recipe = the_plan.loaded.recipe
        self.folder = state / "runs" / the_plan.run_id
        self.made: dict[str, Artifact] = {}
        self.journal = Journal.open(self.folder, self.recipe.tracking.experiment or self.recipe.name)
        self.synced = time.monotonic()

    def execute(self, until: str | None) -> Path:
        resolved = dump(self.plan.loaded)
        tags = {
            "workbench.recipe": self.recipe.name,
            "workbench.recipe_digest": digest(self.recipe.model_dump()),
            "workbench.run": self.plan.run_id,
        }
        parent = self.journal.start(self.plan.run_id, tags=tags)
        with disk_faults("writing the run's folder"):
            (self.folder / "recipe.resolved.yaml").write_text(resolved)
        self.journal.text(parent, resolved, "recipe.resolved.yaml")
        self.journal.text(parent, json.dumps(environment(), indent=1), "environment.json")
        self.journal.params(parent, headline_params(self.plan))
        say(f"run {self.plan.run_id}")
        try:
            for stage in self._wanted(until):
                self._stage(stage, parent)
        except BaseException as error:
            self.journal.end(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            self._save("failed")
            self._sync(force=True)
            raise
        self._candidates(parent)
        self.journal.end(parent)
        self._save("finished" if until in (None, "evaluate") else f"stopped after {until}")
        self._sync(force=True)
        return self.folder

    def _wanted(self, until: str | None) -> Iterator[Stage]:
        for stage in self.plan.stages:
            if until is None or STAGES.index(_kind(stage)) <= STAGES.index(until):
                yield stage

    def _stage(self, stage: Stage, parent: str) -> None:
        run = self.journal.start(stage.name, parent=parent, tags={"workbench.stage": _kind(stage), "workbench.key": stage.key})
        there = self.store.find(stage.name, stage.key) is not None
        say(f"{stage.name}: {'there already' if there else 'started'}")

        def report(metrics: Mapping[str, float], step: int | None) -> None:
            self.journal.metrics(run, metrics, step=step or 0)
            self._sync()

        try:
            artifact = make(stage, self.store, {one.name: self.made[one.name] for one in stage.inputs}, report)
        except BaseException:
            self.journal.end(run, "FAILED")
            raise
        self.made[stage.name] = artifact
        if not there:
            say(f"{stage.name}: done in {duration(artifact.seconds)}")
        self.journal.tags(run, {"workbench.artifact": artifact.name, "workbench.reused": there})
        self.journal.metrics(run, {f"{_kind(stage)}/{name}": value for name, value in artifact.facts.items() if _is_number(value)})
        self._details(stage, run, artifact)
        self.journal.end(run)
        self._sync()

    def _details(self, stage: Stage, run: str, artifact: Artifact) -> None:
        """What a stage leaves in MLflow besides its numbers."""
        match _kind(stage):
            case "data":
                guard = stage.name.partition(":")[2]
                for name, rows in {guard: artifact.facts["rows"]}.items() if guard else artifact.facts["sizes"].items():
                    origin = artifact.facts["origin"]
                    self.journal.dataset(run, f"{self.recipe.name}-{name}", digest=stage.key, source=origin, rows=rows, context=name)
            case "train":
                self.journal.params(run, self.recipe.train.model_dump() if self.recipe.train else {})
                if self.recipe.train and self.recipe.train.method != "full":
                    for name in ("adapter_config.json", "adapter_model.safetensors"):
                        self.journal.file(run, artifact.path / name, "adapter")
            case "evaluate":
                self.journal.file(run, artifact.path / "outcomes.parquet")

    def _candidates(self, parent: str) -> None:
        """One nested run per candidate, with the same metric names, for MLflow's comparison view; the tuned model is registered."""
        for candidate in self.plan.candidates:
            done = {name: self.made[stage.name] for name, stage in self.plan.evaluations[candidate.name].items() if stage.name in self.made}
            if not done:
                continue
            run = self.journal.start(
                f"candidate:{candidate.name}", parent=parent, tags={"workbench.candidate": candidate.name, "workbench.kind": candidate.kind}
            )
            for name, artifact in done.items():
                self.journal.metrics(run, {f"{name}/{key}": artifact.facts[key] for key in ("tokens_per_s", "rows", "scored")})
                self.journal.metrics(run, {f"{name}/score": mean_score(artifact)})
            weights = self.made[candidate.weights.name]
            self.journal.metrics(run, {"size_bytes": float(sum(file.stat().st_size for file in weights.path.glob("*.safetensors")))})
            if candidate.trained is not None:
                lineage = {
                    "workbench.recipe_digest": digest(self.recipe.model_dump()),
                    "workbench.data_key": self.made["data"].key,
                    "workbench.base": self.made["model"].facts["origin"],
                    "workbench.base_revision": self.made["model"].facts["revision"],
                    "workbench.parent_artifact": self.made["train"].name,
                    "workbench.license": self.recipe.model.license,
                }
                registered = self.recipe.name if self.recipe.tracking.register_model else None
                self.journal.model(
                    run,
                    weights.path,
                    digest=weights.key,
                    registered_name=registered,
                    tags=lineage,
                    max_new_tokens=self.recipe.task.max_new_tokens,
                )
            self.journal.end(run)

    def _save(self, status: str) -> None:
        """`run.json`, from which `workbench show` finds everything else."""
        record = {
            "id": self.plan.run_id,
            "recipe": self.recipe.name,
            "status": status,
            "time": time.time(),
            "stages": [
                {"name": stage.name, "key": stage.key, "artifact": self.made[stage.name].name, "seconds": self.made[stage.name].seconds}
                for stage in self.plan.stages
                if stage.name in self.made
            ],
            "candidates": [
                {
                    "name": candidate.name,
                    "kind": candidate.kind,
                    "model": self.made[candidate.weights.name].name,
                    "outcomes": {
                        name: self.made[stage.name].name
                        for name, stage in self.plan.evaluations[candidate.name].items()
                        if stage.name in self.made
                    },
                }
                for candidate in self.plan.candidates
                if candidate.weights.name in self.made
            ],
            "task": {"metric": self.recipe.task.metric, "split": self.recipe.evaluate.split},
            "guards": {
                guard.name: {"floor": guard.floor, "metric": (guard.task or self.recipe.task).metric}
                for guard in self.recipe.evaluate.guards
            },
            "origins": {key: source.origin for key, source in self.plan.sources.items()},
        }
        with disk_faults("writing the run's folder"):
            partial = self.folder / "run.json.partial"
            partial.write_text(json.dumps(record, indent=1))
            partial.rename(self.folder / "run.json")

    def _sync(self, *, force: bool = False) -> None:
        if not force and time.monotonic() - self.synced < SYNC_INTERVAL:
            return
        self.synced = time.monotonic()
        result = sync_all(self.state) if force else sync(self.folder)  # at the end also what earlier runs could not send
        if result.error and result.first:
            say(f"warning: MLflow is not reachable ({result.error}); everything is kept locally, `workbench sync` sends it later")


def _help_to_train(the_plan: Plan, store: Store) -> None:
    """What ranks other than 0 do: wait until rank 0 has prepared the training, take part in it, and leave."""
    stage = next((one for one in the_plan.stages if one.name == "train"), None)
    if stage is None:
        return
    job_file = store.scratch / f"{stage.name}-{stage.key}" / "job.json"
    while store.find(stage.name, stage.key) is None:
        if job_file.exists():
            launched.run(load_job(job_file))
            return
        time.sleep(0.2)


def mean_score(artifact: Artifact) -> float | None:
    """The mean score of an outcomes artifact over what could be scored."""
    from workbench.evaluation import outcomes

    scores = [score for score in outcomes.read(artifact.path / "outcomes.parquet")["score"].to_pylist() if score is not None]
    return sum(scores) / len(scores) if scores else None


def headline_params(the_plan: Plan) -> dict[str, Any]:
    """The few settings that one compares runs by; the whole recipe is an artifact."""
    recipe = the_plan.loaded.recipe
    train = recipe.train
    params = {"model": recipe.model.source, "data": recipe.data.source, "metric": recipe.task.metric, "engine": recipe.evaluate.engine}
    if train is not None:
        params |= {
            key: str(getattr(train, key)) for key in ("method", "rank", "learning_rate", "epochs", "batch_size", "max_length", "seed")
        }
    return params


def _kind(stage: Stage) -> str:
    return stage.name.partition(":")[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
