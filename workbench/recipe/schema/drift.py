"""Section `drift`: how the closed model is asked again, to see whether it changed underneath."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workbench.recipe.schema.base import Positive, Section


class Drift(Section):
    """A canary subset of the examples that the baseline answered, asked again now and then."""

    canaries: Positive = Field(default=200, description="how many examples, chosen by hash: always the same ones")
    repeats: Annotated[int, Field(ge=2)] = Field(
        default=3, description="answers to each of them; two or more, since only repeats show what the model's own noise is"
    )
    alpha: float = Field(default=0.01, gt=0, lt=0.5, description="how often a model that did not change may be said to have another score")
    budget_usd: float = Field(default=1.0, gt=0, description="most that one check may cost")
