"""Stage `select`: which of the tuned model and its quantised copies goes on. It sees the validation split and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import EvaluationError
from workbench.progress import say
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Bounds
from workbench.stages.evaluate import Candidate
from workbench.stages.stage import Stage, Work
from workbench.store import Artifact


def select_stage(
    loaded: Loaded,
    candidates: Sequence[Candidate],
    validated: Mapping[str, Stage],
    footprints: Mapping[str, Stage],
    compared: Mapping[str, Stage],
) -> Stage:
    """The stage that picks one candidate.

    Args:
        candidates: the unquantised model first, then its copies.
        validated: each candidate's answers to the validation rows, by its name.
        footprints: what each candidate takes, by its name.
        compared: each copy beside its parent, by its name.
    """
    settings = loaded.recipe.select

    def make(work: Work) -> dict[str, Any]:
        rows = [_row(one.name, validated[one.name], footprints[one.name], compared.get(one.name), work.inputs) for one in candidates]
        for row in rows:
            row["beyond"] = beyond(row, settings.at_most)
        picked = pick(rows)
        say(f"  select: {picked or 'no candidate keeps the limits'}")
        return {"picked": picked, "by": settings.by, "at_most": settings.at_most.model_dump(), "candidates": rows}

    inputs = (*validated.values(), *footprints.values(), *compared.values())
    return Stage("select", 1, settings.model_dump(), make, inputs)


def _row(name: str, validated: Stage, footprint: Stage, compared: Stage | None, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    from workbench.evaluation import outcomes

    artifact = inputs[validated.name]
    scores = [score for score in outcomes.read(artifact.path / "outcomes.parquet")["score"].to_pylist() if score is not None]
    if not scores:
        fix = "see its outcomes: the metric and the answers do not fit together"
        raise EvaluationError(f"no validation row of {name!r} can be scored", where=artifact.name, fix=fix)
    return {
        "name": name,
        "score": sum(scores) / len(scores),
        "n": len(scores),
        "size_mb": artifact.facts["size_bytes"] / 1e6,
        "memory_mb": inputs[footprint.name].facts["peak_memory_bytes"] / 1e6,
        "slowdown": 1 / inputs[compared.name].facts["speed"]["decode_ratio"] if compared is not None else 1.0,
    }


def beyond(row: Mapping[str, Any], at_most: Bounds) -> list[str]:
    """The limits that a candidate does not keep, by their keys."""
    return [key for key, limit in at_most.model_dump().items() if limit is not None and row[key] > limit]


def pick(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The candidate with the highest score among those within all limits; of equals the smallest. None where there is none."""
    within = [row for row in rows if not row["beyond"]]
    best = min(within, key=lambda row: (-row["score"], row["size_mb"]), default=None)
    return None if best is None else str(best["name"])
