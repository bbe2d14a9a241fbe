"""Section `gate`: what it takes for the small model to take over."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workbench.recipe.schema.base import Fraction, Section, Text

Limit = Annotated[float, Field(gt=0)]


class Floors(Section):
    """What has to hold beside the comparison, each by itself."""

    score: Fraction | None = Field(default=None, description="least mean score")
    latency_p50_s: Limit | None = Field(default=None, description="largest median latency, in seconds")
    latency_p95_s: Limit | None = Field(default=None, description="largest 95th percentile of the latency, in seconds")
    latency_p99_s: Limit | None = Field(default=None, description="largest 99th percentile of the latency, in seconds")
    size_mb: Limit | None = Field(default=None, description="largest size of the weights on disk, in millions of bytes")
    cost_per_1k_usd: Limit | None = Field(default=None, description="largest mean cost of 1000 requests, in US dollars")


class Gate(Section):
    """Paired non-inferiority against the baseline: not worse by the margin or more, in the task and in every required slice."""

    subject: Literal["candidate", "routed"] = Field(
        default="candidate", description="what is judged: the selected model by itself, or together with the router"
    )
    margin: float = Field(gt=0, lt=1, description="how much lower the mean score may be, from 0 to 1", examples=[0.03])
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="how often a candidate that is worse by the margin may pass")
    slices: list[Text] = Field(
        default=[],
        description="fields of metadata whose every value must pass by itself; or field=value for one value of a field",
        examples=[["source"]],
    )
    unscored: Literal["fail", "exclude", "refuse"] = Field(
        default="fail",
        description="rows without a score: count against the candidate (0 for it, 1 for the baseline), leave the pair out, or do not judge",
    )
    sequential: bool = Field(
        default=False, description="judge after every example, in the table's order, and stop early; needs more examples to be as sure"
    )
    discordance: float = Field(
        default=0.1, gt=0, le=1, description="share of examples that only one of the two is expected to get right; for the preview only"
    )
    floors: Floors = Field(default=Floors(), description="what has to hold beside the comparison")
