"""Section `task`: what the model is asked, and how an answer is scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from workbench.recipe.schema.base import Fault, LocalFunction, PathText, Positive, Section, Text, agree

MetricName = Literal[
    "label", "exact_match", "numeric", "contains", "regex", "json_f1", "json_exact",
    "rouge_l", "chrf", "perplexity", "function",
]  # fmt: skip


class Task(Section):
    """What the model is asked, and how an answer is scored."""

    prompt: Text | None = Field(
        default=None,
        description="template with {field} for a field of the row ('evals' rows have {input} and {system}); left out for chat formats",
    )
    chat: bool | None = Field(
        default=None,
        description="wrap the prompt in the model's chat template; default: yes for chat and openai rows, no where `prompt` is given",
    )
    system: Text | None = Field(default=None, description="system message for every chat prompt; replaces the row's own")
    metric: MetricName = Field(description="how an output is scored against the reference, from 0 to 1", examples=["exact_match"])
    labels: list[Text] | None = Field(
        default=None, min_length=2, description="label: every allowed answer, exactly as in the data", examples=[["yes", "no"]]
    )
    normalize: bool = Field(default=True, description="exact_match, contains: compare without case, punctuation, articles and extra space")
    tolerance: float = Field(default=0.0, ge=0, description="numeric: largest relative error that still counts as right")
    pattern: Text | None = Field(
        default=None, description="regex: must be found in the output; its first group, if any, must equal the reference"
    )
    json_schema: PathText | None = Field(default=None, description="json_f1, json_exact: path to a JSON Schema the output must satisfy")
    function: Annotated[str, StringConstraints(min_length=1), LocalFunction()] | None = Field(
        default=None, description="function: dotted path 'module:name' of your own scorer (output, reference, metadata) -> 0..1"
    )
    max_new_tokens: Positive = Field(default=64, description="longest answer that is generated")
    stop: list[Text] = Field(default=[], description="strings that end an answer")

    @model_validator(mode="after")
    def _metric_has_what_it_needs(self) -> Task:
        owners = {"labels": ("label",), "pattern": ("regex",), "function": ("function",), "json_schema": ("json_f1", "json_exact")}
        needed = ("labels", "pattern", "function")
        agree(*(self._fit(key, metrics, needed=key in needed) for key, metrics in owners.items()), self._distinct_labels())
        return self

    def _fit(self, key: str, metrics: tuple[str, ...], *, needed: bool) -> Fault | None:
        given = getattr(self, key) is not None
        if given and self.metric not in metrics:
            wanted = " or ".join(f"`{metric}`" for metric in metrics)
            return Fault(
                key, f"`{key}` belongs to metric {wanted}, but the metric is `{self.metric}`", f"remove `{key}`, or change the metric"
            )
        if needed and not given and self.metric in metrics:
            return Fault("metric", f"metric `{self.metric}` needs `{key}`", f"add `{key}` to `task`, or choose another metric")
        return None

    def _distinct_labels(self) -> Fault | None:
        twice = next((label for label in self.labels or () if (self.labels or []).count(label) > 1), None)
        return None if twice is None else Fault("labels", f"`labels` names {twice!r} twice", "name each label once")
