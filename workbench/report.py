"""The evidence of a run: read from its artifacts, every number recomputed from outcomes tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError, WorkbenchError
from workbench.evaluation.pareto import dominated
from workbench.evaluation.statistics import mean_interval, paired_difference, recovery
from workbench.stages import evidence
from workbench.stages.quantize import calibrated_on
from workbench.stages.stale import stale
from workbench.store import Artifact, Store

TASK = "task"


def find_run(state: Path, which: str | None) -> Path:
    """The folder of a run: by its id, its recipe's name (the latest), its folder, or the latest of all.

    Raises:
        WorkbenchError: there is none.
    """
    if which is not None and (Path(which) / "run.json").is_file():
        return Path(which).absolute()
    runs = sorted((state / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in runs:
        if which in (None, path.parent.name, json.loads(path.read_text())["recipe"]):
            return path.parent
    known = ", ".join(path.parent.name for path in runs[:5])
    raise WorkbenchError(
        "there is no run yet" if which is None else f"there is no run {which!r}",
        where=str(state / "runs"),
        fix=f"choose among {known}" if known else "run a recipe first: workbench run RECIPE",
    )


def read(folder: Path) -> dict[str, Any]:
    """Everything `workbench show` says about a run; JSON-compatible.

    Raises:
        WorkbenchError: an artifact of the run is missing from the store.
    """
    run = json.loads((folder / "run.json").read_text())
    store = Store(folder.parent.parent)
    artifacts = {stage["name"]: stage_artifact(store, stage) for stage in run["stages"]}
    tables = {
        (candidate["name"], name): _answers(artifacts[f"evaluate:{candidate['name']}:{name}"])
        for candidate in (*run["candidates"], *run["closed"])
        for name in candidate["outcomes"]
    }
    selection = dict(artifacts["select"].facts) if "select" in artifacts else None
    candidates = [_candidate(one, run["task"], artifacts, tables) for one in run["candidates"] if (one["name"], TASK) in tables]
    candidates += [_closed(one, run["task"], artifacts, tables) for one in run["closed"]]
    asked = artifacts.get(f"evaluate:baseline:{TASK}")
    drifted = None if asked is None else stale(store.state, asked.name)
    _rank(candidates, None if selection is None else selection["picked"])
    for row in candidates:
        if row["kind"] == "quantized":
            row["not_exportable"] = evidence.missing(store, artifacts[f"quantize:{row['name']}"], artifacts["data"])
    return {
        "run": {key: run[key] for key in ("id", "recipe", "status", "time")} | {"folder": str(folder)},
        "task": run["task"],
        "candidates": candidates,
        "selection": selection,
        "gate": {**artifacts["gate"].facts, "stale": drifted} if "gate" in artifacts else None,
        "drifted": drifted,
        "managed": _managed(artifacts) if "tune:managed" in artifacts else None,
        "guards": [
            _guard(one, name, guard, tables)
            for name, guard in run["guards"].items()
            for one in run["candidates"]
            if (one["name"], name) in tables
        ],
        "data": dict(artifacts["data"].facts) if "data" in artifacts else None,
        "training": _training(artifacts["train"]) if "train" in artifacts else None,
        "merge": dict(artifacts["merge"].facts) if "merge" in artifacts else None,
        "model": {key: value for key, value in artifacts["model"].facts.items() if key != "chat_template"}
        if "model" in artifacts
        else None,
        "stages": [{key: stage[key] for key in ("name", "artifact", "seconds")} for stage in run["stages"]],
    }


def stage_artifact(store: Store, stage: Mapping[str, Any]) -> Artifact:
    """The artifact of a stage as run.json names it.

    Raises:
        WorkbenchError: it is missing from the store.
    """
    found = store.find(stage["name"], stage["key"])
    if found is None:
        raise WorkbenchError(
            "an artifact of this run is missing or damaged",
            where=str(store.root / stage["artifact"]),
            fix="run the recipe again: only what is missing is made",
        )
    return found


@dataclass(frozen=True)
class _Answers:
    """One outcomes table by example id and repeat: what was scored, and what was said."""

    scores: Mapping[str, float | None]
    outputs: Mapping[str, str | None]


def _answers(artifact: Artifact) -> _Answers:
    from workbench.evaluation import outcomes

    table = outcomes.read(artifact.path / "outcomes.parquet")
    keys = [f"{example}/{repeat}" for example, repeat in zip(table["example_id"].to_pylist(), table["repeat"].to_pylist(), strict=True)]
    columns = (dict(zip(keys, table[name].to_pylist(), strict=True)) for name in ("score", "output"))
    return _Answers(*columns)


def _candidate(
    candidate: Mapping[str, Any],
    task: Mapping[str, Any],
    artifacts: Mapping[str, Artifact],
    tables: Mapping[tuple[str, str], _Answers],
) -> dict[str, Any]:
    name, parent = candidate["name"], candidate["parent"]
    own = tables[name, TASK]
    facts = artifacts[f"evaluate:{name}:{TASK}"].facts
    alone = artifacts.get(f"footprint:{name}")  # the evaluating process had held other models before
    row = {
        "name": name,
        "kind": candidate["kind"],
        "parent": parent,
        "metric": task["metric"],
        **_mean(own.scores),
        "recovery": None,
        "recovery_low": None,
        "recovery_high": None,
        "size_bytes": facts["size_bytes"],
        "tokens_per_s": facts["tokens_per_s"],
        "peak_memory_bytes": (alone or artifacts[f"evaluate:{name}:{TASK}"]).facts["peak_memory_bytes"],
        "load_seconds": (alone or artifacts[f"evaluate:{name}:{TASK}"]).facts["load_seconds"],
        "difference_to_base": None,
        "difference_to_parent": None,
        "agreement": None,
        "measured_beside_parent": None,
        "quantization": None,
    }
    if name != "base" and ("base", TASK) in tables:
        row["difference_to_base"] = _difference(own, tables["base", TASK])
    if parent is not None and (parent, TASK) in tables:
        row |= _beside_parent(own, tables[parent, TASK])
    if f"compare:{name}" in artifacts:
        row["measured_beside_parent"] = dict(artifacts[f"compare:{name}"].facts)
    if f"quantize:{name}" in artifacts:
        made = artifacts[f"quantize:{name}"]
        row["quantization"] = {**made.facts, "seconds": made.seconds, "calibrated_on": calibrated_on(made.facts)}
    return row


def _closed(
    closed: Mapping[str, Any], task: Mapping[str, Any], artifacts: Mapping[str, Artifact], tables: Mapping[tuple[str, str], _Answers]
) -> dict[str, Any]:
    """A row of the candidates for a model whose weights, memory and speed are nobody's business but its owner's."""
    facts = artifacts[f"evaluate:{closed['name']}:{TASK}"].facts
    own = tables[closed["name"], TASK]
    unknown = ("parent", "recovery", "recovery_low", "recovery_high", "size_bytes", "tokens_per_s", "peak_memory_bytes", "load_seconds")
    beside = ("difference_to_parent", "agreement", "measured_beside_parent", "quantization")
    kept = ("model", "versions", "price", "cost_per_1k_usd", "spent_usd", "latency_p50_s", "simulated")
    return {
        "name": closed["name"],
        "kind": closed["kind"],
        "metric": task["metric"],
        **_mean(own.scores),
        **dict.fromkeys((*unknown, *beside)),
        "difference_to_base": _difference(own, tables["base", TASK]) if ("base", TASK) in tables else None,
        **{key: facts[key] for key in kept},
    }


def _managed(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The provider's own fine-tune: what it took, and its verdict."""
    gate = artifacts.get("gate:managed")
    return {**artifacts["tune:managed"].facts, "gate": dict(gate.facts) if gate is not None else None}


def _beside_parent(own: _Answers, parent: _Answers) -> dict[str, Any]:
    """A copy on the same examples as its parent: difference, recovery, and how often both say the same."""
    found: dict[str, Any] = {"difference_to_parent": _difference(own, parent)}
    pairs = _pairs(own, parent)
    if any(against for _, against in pairs):
        try:
            share = recovery([score for score, _ in pairs], [against for _, against in pairs])
            found |= {"recovery": share.estimate, "recovery_low": share.low, "recovery_high": share.high}
        except EvaluationError:
            pass  # the parent is right so rarely that a ratio to it means nothing; it stays null
    same = [own.outputs[key] == parent.outputs[key] for key in own.outputs if key in parent.outputs]
    found["agreement"] = sum(same) / len(same) if same else None
    return found


def _rank(candidates: Sequence[dict[str, Any]], picked: str | None) -> None:
    """Mark the selected candidate, and those that another one dominates; null for what was not measured beside its like."""
    points: dict[str, tuple[float, float, float, float]] = {}
    parents = {row["parent"] for row in candidates if row["measured_beside_parent"]}
    for row in candidates:
        beside = row["measured_beside_parent"]
        if row["score"] is not None and (beside or row["name"] in parents):
            slowdown = 1 / beside["speed"]["decode_ratio"] if beside else 1.0
            points[row["name"]] = (row["score"], row["size_bytes"], row["peak_memory_bytes"], slowdown)
    better = dominated(points)
    for row in candidates:
        row["dominated_by"] = better.get(row["name"])
        row["selected"] = row["name"] == picked


def _guard(candidate: Mapping[str, Any], name: str, guard: Mapping[str, Any], tables: Mapping[tuple[str, str], _Answers]) -> dict[str, Any]:
    row = {
        "guard": name,
        "candidate": candidate["name"],
        "metric": guard["metric"],
        **_mean(tables[candidate["name"], name].scores),
        "floor": guard["floor"],
    }
    row["floor_met"] = (
        None if guard["floor"] is None or candidate["kind"] == "base" or row["score"] is None else row["score"] >= guard["floor"]
    )
    return row


def _mean(scores: Mapping[str, float | None]) -> dict[str, Any]:
    scored = [score for score in scores.values() if score is not None]
    unscored = len(scores) - len(scored)
    if not scored:
        return {"score": None, "ci_low": None, "ci_high": None, "n": 0, "unscored": unscored}
    interval = mean_interval(scored)
    return {"score": interval.estimate, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n, "unscored": unscored}


def _difference(one: _Answers, other: _Answers) -> dict[str, Any] | None:
    """Of the examples that both tables scored."""
    both = _pairs(one, other)
    if not both:
        return None
    interval = paired_difference([a for a, _ in both], [b for _, b in both])
    return {"estimate": interval.estimate, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}


def _pairs(one: _Answers, other: _Answers) -> list[tuple[float, float]]:
    return [(score, against) for key, score in one.scores.items() if score is not None and (against := other.scores.get(key)) is not None]


def _training(artifact: Artifact) -> dict[str, Any]:
    return {**artifact.facts, "seconds": artifact.seconds}


def total_seconds(report: Mapping[str, Any], *, copies: bool) -> float:
    """Seconds that the stages took when they were made: training, merging and evaluating, or making and measuring quantised copies."""
    names = {row["name"] for row in report["candidates"] if row["kind"] == "quantized"}
    kinds = ("calibration", "quantize", "evaluate", "footprint", "compare") if copies else ("train", "merge", "evaluate")
    total = 0.0
    for stage in report["stages"]:
        kind, _, rest = stage["name"].partition(":")
        of_a_copy = rest.partition(":")[0] in names or kind in ("calibration", "footprint")
        total += stage["seconds"] if kind in kinds and of_a_copy == copies else 0
    return total
