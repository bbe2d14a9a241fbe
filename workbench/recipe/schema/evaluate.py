"""Section `evaluate`: how every candidate answers the held-out rows, and the guard sets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workbench.recipe.schema.base import Fault, Fraction, Name, PathText, Positive, Section, agree
from workbench.recipe.schema.data import Columns, Format
from workbench.recipe.schema.task import Task


class Guard(Section):
    """An evaluation set outside the task, to see what the fine-tune broke."""

    name: Name = Field(description="what reports call this set", examples=["paraphrased"])
    source: PathText = Field(description="file to read; same forms as data.source", examples=["guard.jsonl"])
    format: Format = Field(description="how a row is written; same as data.format", examples=["chat"])
    columns: Columns = Field(default=Columns(), description="which fields hold the prompt, the answer and the metadata")
    task: Task | None = Field(default=None, description="how its rows are asked and scored; default: the recipe's own task")
    limit: Positive | None = Field(default=None, description="at most this many rows, chosen by hash; default: all")
    floor: Fraction | None = Field(default=None, description="lowest acceptable mean score of the tuned model; a gate can require it")


class Evaluate(Section):
    """Candidates x examples -> outcomes."""

    engine: Literal["transformers"] = Field(default="transformers", description="what generates the answers")
    split: Literal["validation", "test"] = Field(default="test", description="the rows every candidate answers")
    batch_tokens: Positive = Field(default=2048, description="token budget of one forward pass; lower it if memory runs out")
    guards: list[Guard] = Field(default=[], description="evaluation sets outside the task, reported beside it")

    @model_validator(mode="after")
    def _guard_names_differ(self) -> Evaluate:
        names = ["task", *(guard.name for guard in self.guards)]
        twice = next((name for name in names if names.count(name) > 1), None)
        what = "a guard is named `task`, as the recipe's own examples are" if twice == "task" else f"two guards are named `{twice}`"
        agree(None if twice is None else Fault("guards", what, "give each guard a name of its own"))
        return self
