"""What rests on the answers of a closed model that has drifted since: marked stale by the checks in `.workbench/drift`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.store import Artifact, Store

#: Folder of the checks in the state directory, and the file that each of them has; it is there as a whole or not at all.
CHECKS, RESULT = "drift", "drift.json"


def stale(state: Path, baseline: str) -> dict[str, Any] | None:
    """The mark on everything that was concluded from a baseline's recorded answers; None where it still holds.

    The first check that found a drift sets the mark, and none takes it away: to ask until nothing is found would be no evidence.

    Args:
        baseline: name of the artifact with the recorded answers.

    Returns:
        `since` (ISO 8601, UTC), `verdict` and `check` of the first check that found a drift, and `later`: the verdicts of those since.
    """
    checks = [one for one in _checks(state) if one["baseline"] == baseline]
    first = next((index for index, one in enumerate(checks) if one["drifted"]), None)
    if first is None:
        return None
    found, later = checks[first], checks[first + 1 :]
    return {"since": found["time"], "verdict": found["verdict"], "check": found["id"], "later": [one["verdict"] for one in later]}


def dependents(store: Store, artifact: Artifact) -> list[str]:
    """Names of the artifacts that were made of this one, directly or not."""
    known = [(one, ingredients["inputs"]) for one, ingredients in store.artifacts()]
    reached, names = {(artifact.stage, artifact.key)}, list[str]()
    while further := [one for one, inputs in known if one.name not in names and reached & set(inputs.items())]:
        names += [one.name for one in further]
        reached |= {(one.stage, one.key) for one in further}
    return sorted(names)


def _checks(state: Path) -> Iterator[dict[str, Any]]:
    """The checks so far, the earliest first."""
    for path in sorted((state / CHECKS).glob(f"[!.]*/{RESULT}")):
        yield json.loads(path.read_text(encoding="utf-8"))
