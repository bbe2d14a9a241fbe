"""May a quantised copy leave the workbench? Only with every measurement, taken on these weights and these data; the store knows."""

from __future__ import annotations

from workbench.errors import StoreError
from workbench.store import Artifact, Store

#: What a copy must have been through, by the name of the stage.
NEEDED = {
    "evaluate:{}:task": "its score",
    "evaluate:{}:validation": "its score on the validation split",
    "footprint:{}": "its load time and memory",
    "compare:{}": "the comparison with its parent",
}


def missing(store: Store, weights: Artifact, data: Artifact) -> list[str]:
    """What is not known about a copy, in words; an empty list: it may be exported.

    Args:
        weights: the artifact of a `quantize` stage.
        data: the artifact of the `data` stage that it must have been measured on.
    """
    title = weights.stage.partition(":")[2]
    found: dict[str, set[str]] = {stage.format(title): set() for stage in NEEDED}
    for artifact, ingredients in store.artifacts():
        if artifact.stage in found and ingredients["inputs"].get(weights.stage) == weights.key:
            found[artifact.stage].add(ingredients["inputs"]["data"])
    gaps = []
    for (stage, measured), what in zip(found.items(), NEEDED.values(), strict=True):
        if not measured:
            gaps.append(f"{what} was never measured ({stage})")
        elif data.key not in measured:
            gaps.append(f"{what} was measured on other data (data-{sorted(measured)[0]}, not {data.name})")
    return gaps


def require(store: Store, weights: Artifact, data: Artifact) -> None:
    """Refuse a copy that was not measured.

    Raises:
        StoreError: says what is missing.
    """
    gaps = missing(store, weights, data)
    if gaps:
        raise StoreError(
            f"cannot be exported: {'; '.join(gaps)}", where=weights.name, fix="run the recipe again: only what is missing is made"
        )
