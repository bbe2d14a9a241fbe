"""JSON exact match: the output is JSON, satisfies the schema and equals the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.evaluation.metrics.json_output import Check, equal, parse, schema_check
from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task


@dataclass(frozen=True)
class JsonExact:
    """1.0 when both hold the same JSON value; an output that is no JSON or violates the schema is 0.0 and invalid."""

    check: Check

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:
        answer, problem = None, None
        try:
            answer = parse(output)
            if violation := self.check(answer):
                problem = f"the output {violation}"
        except ValueError:
            problem = "the output is not JSON"

        def compare(reference: str) -> Score:
            try:
                wanted = parse(reference)
            except ValueError:
                return Score(None, reason="the reference is not JSON")
            if violation := self.check(wanted):
                return Score(None, reason=f"the reference {violation}")
            return Score(0.0, False, problem) if problem else Score(float(equal(answer, wanted)), True)

        return best(references, compare)


def build(task: Task, base: Path) -> JsonExact:
    """Uses `task.json_schema`; raises what `schema_check` raises."""
    return JsonExact(schema_check(task.json_schema, base))
