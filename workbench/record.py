"""What a run leaves behind: the journal that becomes MLflow's runs, and `run.json`, from which `workbench show` finds the artifacts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import plots
from workbench.digest import digest
from workbench.errors import disk_faults
from workbench.plan import Plan
from workbench.progress import say
from workbench.recipe.resolved import dump
from workbench.report import read
from workbench.stages.evaluate import TASK, Closed
from workbench.stages.stage import Stage
from workbench.store import Artifact
from workbench.tracking import Journal, Status, environment, sync, sync_all

#: The alias in MLflow's registry that names what passed its gate. Nothing else moves it.
CHAMPION = "champion"
#: Seconds between two attempts to bring MLflow up to date while a stage runs.
SYNC_INTERVAL = 30.0


class Record:
    """The record of one run: a parent run, a nested run for each stage and each candidate.

    Attributes:
        folder: where it lies.
        made: the artifacts so far, by stage name.
    """

    def __init__(self, plan: Plan, state: Path) -> None:
        """Begin the record of a run, or go on with the one that a killed run left."""
        self.plan, self.state, self.recipe = plan, state, plan.loaded.recipe
        self.folder = state / "runs" / plan.run_id
        self.made: dict[str, Artifact] = {}
        self.journal = Journal.open(self.folder, self.recipe.tracking.experiment or self.recipe.name)
        self.synced = time.monotonic()
        self.recipe_digest = digest(self.recipe.model_dump())
        tags = {"workbench.recipe": self.recipe.name, "workbench.recipe_digest": self.recipe_digest, "workbench.run": plan.run_id}
        self.parent = self.journal.start(plan.run_id, tags=tags)
        resolved = dump(plan.loaded)
        with disk_faults("writing the run's folder"):
            (self.folder / "recipe.resolved.yaml").write_text(resolved, encoding="utf-8")
        self.journal.text(self.parent, resolved, "recipe.resolved.yaml")
        self.journal.text(self.parent, json.dumps(environment(), indent=1), "environment.json")
        self.journal.params(self.parent, headline_params(plan))

    def started(self, stage: Stage) -> str:
        """A stage begins; returns the id of its nested run."""
        return self.journal.start(stage.name, parent=self.parent, tags={"workbench.stage": stage.kind, "workbench.key": stage.key})

    def metrics(self, run: str, metrics: Mapping[str, float], step: int | None) -> None:
        """Numbers of a stage that is at work; MLflow hears of them now and then."""
        self.journal.metrics(run, metrics, step=step or 0)
        self.sync()

    def finished(self, stage: Stage, run: str, artifact: Artifact, *, reused: bool) -> None:
        """A stage has its artifact, made now or found."""
        self.made[stage.name] = artifact
        self.journal.tags(run, {"workbench.artifact": artifact.name, "workbench.reused": reused})
        self.journal.metrics(run, {f"{stage.kind}/{name}": value for name, value in artifact.facts.items() if _is_number(value)})
        self._details(stage, run, artifact)
        self.journal.end(run)
        self.sync()

    def close(self, status: str, outcome: Status = "FINISHED") -> None:
        """The run is over, for now or for good.

        Args:
            status: in words, for `workbench show`.
            outcome: for MLflow.
        """
        self._save(status)
        if outcome == "FINISHED":
            self._candidates()
            self._picture()
        self.journal.end(self.parent, outcome)
        self.sync(force=True)

    def sync(self, *, force: bool = False) -> None:
        if not force and time.monotonic() - self.synced < SYNC_INTERVAL:
            return
        self.synced = time.monotonic()
        result = sync_all(self.state) if force else sync(self.folder)  # at the end also what earlier runs could not send
        if result.error and result.first:
            say(f"warning: MLflow is not reachable ({result.error}); everything is kept locally, `workbench sync` sends it later")

    def _details(self, stage: Stage, run: str, artifact: Artifact) -> None:
        """What a stage leaves in MLflow besides its numbers."""
        match stage.kind:
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
            case "gate":
                self.journal.tags(run, {"workbench.verdict": artifact.facts["verdict"], "workbench.simulated": artifact.facts["simulated"]})
                self.journal.text(run, artifact.facts["text"], "verdict.txt")
                if stage.name == "gate":
                    mark = "SIMULATED " if artifact.facts["simulated"] else ""
                    self.journal.tags(self.parent, {"workbench.gate": mark + artifact.facts["verdict"]})

    def _candidates(self) -> None:
        """One nested run per candidate, with the same metric names, for MLflow's comparison view; the tuned model is registered."""
        for candidate in self.plan.candidates:
            done = {name: self.made[stage.name] for name, stage in self.plan.evaluations[candidate.name].items() if stage.name in self.made}
            if not done:
                continue
            run = self.journal.start(
                f"candidate:{candidate.name}",
                parent=self.parent,
                tags={"workbench.candidate": candidate.name, "workbench.kind": candidate.kind},
            )
            for name, artifact in done.items():
                self.journal.metrics(run, {f"{name}/{key}": artifact.facts[key] for key in ("tokens_per_s", "rows", "scored")})
                self.journal.metrics(run, {f"{name}/score": mean_score(artifact)})
            weights = self.made[candidate.weights.name]
            self.journal.metrics(run, {"size_bytes": float(sum(file.stat().st_size for file in weights.path.rglob("*.safetensors")))})
            self.journal.metrics(run, self._measurements(candidate.name))
            subject = self._gate().get("subject") == candidate.name
            if (candidate.trained is not None and candidate.parent is None) or subject:
                lineage = {
                    "workbench.recipe_digest": self.recipe_digest,
                    "workbench.data_key": self.made["data"].key,
                    "workbench.base": self.made["model"].facts["origin"],
                    "workbench.base_revision": self.made["model"].facts["revision"],
                    "workbench.parent_artifact": self.made[(candidate.trained or candidate.weights).name].name,
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
                if subject and registered is not None and self._gate()["verdict"] == "PASS" and self._gate()["simulated"] is False:
                    self.journal.alias(run, registered, CHAMPION, digest=weights.key)
            self.journal.end(run)
        for closed in self.plan.closed:
            if closed.answers.name in self.made:
                self._closed(closed, self.made[closed.answers.name])

    def _closed(self, closed: Closed, artifact: Artifact) -> None:
        """A nested run for a closed model, with the metric names of the open ones."""
        tags = {"workbench.candidate": closed.name, "workbench.kind": closed.kind, "workbench.simulated": artifact.facts["simulated"]}
        run = self.journal.start(f"candidate:{closed.name}", parent=self.parent, tags=tags)
        self.journal.metrics(run, {f"{TASK}/{key}": artifact.facts[key] for key in ("rows", "scored", "cost_per_1k_usd", "latency_p50_s")})
        self.journal.metrics(run, {f"{TASK}/score": mean_score(artifact)})
        self.journal.end(run)

    def _gate(self) -> Mapping[str, Any]:
        """The facts of the verdict; empty where there is none."""
        return self.made["gate"].facts if "gate" in self.made else {}

    def _measurements(self, candidate: str) -> dict[str, float]:
        """What was measured of a candidate beside its scores, by one name for all of them."""
        found: dict[str, Any] = {}
        if f"footprint:{candidate}" in self.made:
            found |= self.made[f"footprint:{candidate}"].facts
        if f"compare:{candidate}" in self.made:
            facts = self.made[f"compare:{candidate}"].facts
            found |= facts["fidelity"] | facts["speed"]
        return {f"measured/{name}": float(value) for name, value in found.items() if _is_number(value)}

    def _picture(self) -> None:
        """The Pareto plot, where the recipe has quantised variants."""
        picture = self.folder / "pareto.svg"
        if self.recipe.quantize and plots.pareto(read(self.folder), picture):
            self.journal.file(self.parent, picture)

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
                    "parent": candidate.parent,
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
            "closed": [
                {"name": closed.name, "kind": closed.kind, "outcomes": {TASK: self.made[closed.answers.name].name}}
                for closed in self.plan.closed
                if closed.answers.name in self.made
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


def mean_score(artifact: Artifact) -> float | None:
    """The mean score of an outcomes artifact over what could be scored."""
    from workbench.evaluation import outcomes

    scores = [score for score in outcomes.read(artifact.path / "outcomes.parquet")["score"].to_pylist() if score is not None]
    return sum(scores) / len(scores) if scores else None


def headline_params(plan: Plan) -> dict[str, Any]:
    """The few settings that one compares runs by; the whole recipe is an artifact."""
    recipe = plan.loaded.recipe
    train = recipe.train
    params = {"model": recipe.model.source, "data": recipe.data.source, "metric": recipe.task.metric, "engine": recipe.evaluate.engine}
    if train is not None:
        params |= {
            key: str(getattr(train, key)) for key in ("method", "rank", "learning_rate", "epochs", "batch_size", "max_length", "seed")
        }
    return params


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
