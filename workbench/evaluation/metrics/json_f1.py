"""JSON field F1: how many of the reference's fields the output has, with the same value, and nothing beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.json_output import Check, equal, parse, schema_check
from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task

Steps = tuple[str | int, ...]


def leaves(value: Any, path: Steps = ()) -> Iterator[tuple[Steps, Any]]:
    """Every leaf of a JSON value with its path of keys and array positions; an empty object or array is a leaf."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


@dataclass(frozen=True)
class JsonF1:
    """Micro F1 over leaves: 2 * equal / (leaves of the output + leaves of the reference).

    Array items are compared by position. An output that is no JSON is 0.0 and invalid; one that violates the schema
    keeps its F1 and is invalid.
    """

    check: Check

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        found: dict[Steps, Any] = {}
        problem = None
        try:
            answer = parse(output)
            found = dict(leaves(answer))
            if violation := self.check(answer):
                problem = f"the output {violation}"
        except ValueError:
            problem = "the output is not JSON"

        def compare(reference: str) -> Score:
            try:
                wanted = dict(leaves(parse(reference)))
            except ValueError:
                return Score(None, reason="the reference is not JSON")
            right = sum(path in found and equal(found[path], value) for path, value in wanted.items())
            return Score(2 * right / (len(found) + len(wanted)), problem is None, problem)

        return best(references, compare)


def build(task: Task, base: Path) -> JsonF1:
    """Uses `task.json_schema`; raises what `schema_check` raises."""
    return JsonF1(schema_check(task.json_schema, base))
