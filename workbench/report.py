"""The evidence of a run: read from its artifacts, every number recomputed from outcomes tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.evaluation.statistics import mean_interval, paired_difference
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
    artifacts = {stage["name"]: _artifact(store, stage) for stage in run["stages"]}
    tables = {
        (candidate["name"], name): _scores(artifacts[f"evaluate:{candidate['name']}:{name}"])
        for candidate in run["candidates"]
        for name in candidate["outcomes"]
    }
    return {
        "run": {key: run[key] for key in ("id", "recipe", "status", "time")} | {"folder": str(folder)},
        "task": run["task"],
        "candidates": [_candidate(one, run["task"], artifacts, tables) for one in run["candidates"] if (one["name"], TASK) in tables],
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


def _artifact(store: Store, stage: Mapping[str, Any]) -> Artifact:
    found = store.find(stage["name"], stage["key"])
    if found is None:
        raise WorkbenchError(
            "an artifact of this run is missing or damaged",
            where=str(store.root / stage["artifact"]),
            fix="run the recipe again: only what is missing is made",
        )
    return found


def _scores(artifact: Artifact) -> dict[str, float | None]:
    """Score by example id (and repeat), of one outcomes table."""
    from workbench.evaluation import outcomes

    table = outcomes.read(artifact.path / "outcomes.parquet")
    keys = zip(table["example_id"].to_pylist(), table["repeat"].to_pylist(), strict=True)
    return {f"{example}/{repeat}": score for (example, repeat), score in zip(keys, table["score"].to_pylist(), strict=True)}


def _candidate(
    candidate: Mapping[str, Any],
    task: Mapping[str, Any],
    artifacts: Mapping[str, Artifact],
    tables: Mapping[tuple[str, str], Mapping[str, float | None]],
) -> dict[str, Any]:
    facts = artifacts[f"evaluate:{candidate['name']}:{TASK}"].facts
    row = {
        "name": candidate["name"],
        "kind": candidate["kind"],
        "metric": task["metric"],
        **_mean(tables[candidate["name"], TASK]),
        "recovery": None,
        "recovery_low": None,
        "size_bytes": facts["size_bytes"],
        "tokens_per_s": facts["tokens_per_s"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "load_seconds": facts["load_seconds"],
        "difference_to_base": None,
    }
    base = tables.get(("base", TASK))
    if base is not None and candidate["name"] != "base":
        row["difference_to_base"] = _difference(tables[candidate["name"], TASK], base)
    return row


def _guard(
    candidate: Mapping[str, Any], name: str, guard: Mapping[str, Any], tables: Mapping[tuple[str, str], Mapping[str, float | None]]
) -> dict[str, Any]:
    row = {
        "guard": name,
        "candidate": candidate["name"],
        "metric": guard["metric"],
        **_mean(tables[candidate["name"], name]),
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


def _difference(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Of the examples that both tables scored."""
    both = [(score, against) for key, score in one.items() if score is not None and (against := other.get(key)) is not None]
    if not both:
        return None
    interval = paired_difference([a for a, _ in both], [b for _, b in both])
    return {"estimate": interval.estimate, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}


def _training(artifact: Artifact) -> dict[str, Any]:
    return {**artifact.facts, "seconds": artifact.seconds}


def total_seconds(stages: Sequence[Mapping[str, Any]], *kinds: str) -> float:
    """Seconds that the stages of these kinds took when they were made."""
    return sum(stage["seconds"] for stage in stages if stage["name"].partition(":")[0] in kinds)
