"""The whole recipe: its sections, and how they must agree."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from workbench.recipe.schema.base import Fault, Name, Section, agree
from workbench.recipe.schema.baseline import Baseline
from workbench.recipe.schema.data import Data
from workbench.recipe.schema.drift import Drift
from workbench.recipe.schema.evaluate import Evaluate
from workbench.recipe.schema.gate import Gate
from workbench.recipe.schema.model import Hub, Model
from workbench.recipe.schema.quantize import Bitsandbytes, Quantizer, Select
from workbench.recipe.schema.task import Task
from workbench.recipe.schema.tracking import Tracking
from workbench.recipe.schema.train import Launch, Merge, Train


class Recipe(Section):
    """One declarative recipe: model, data and task, then what to make of them."""

    name: Name = Field(description="names the experiment, the artifacts and the model", examples=["my-task"])
    model: Model = Field(description="the base model", examples=[{"source": "models/SmolLM2-135M-Instruct"}])
    data: Data = Field(
        description="where the examples come from and how they are divided", examples=[{"source": "train.jsonl", "format": "chat"}]
    )
    task: Task = Field(description="what the model is asked, and how an answer is scored", examples=[{"metric": "exact_match"}])
    train: Train | None = Field(default=None, description="leave out to evaluate the base model only; {} trains with every default")
    launch: Launch = Field(default=Launch(), description="handed to accelerate launch")
    merge: Merge = Field(default=Merge(), description="how the merged model is proved equal to its adapter")
    quantize: list[Quantizer] = Field(
        default=[], description="quantised copies of the tuned model (of the base, without `train`), each one measured"
    )
    select: Select = Field(default=Select(), description="which of the tuned model and its quantised copies goes on")
    baseline: Baseline | None = Field(
        default=None,
        description="the closed model that candidates are compared with",
        examples=[{"provider": "openai", "model": "gpt-4.1-2025-04-14"}],
    )
    gate: Gate | None = Field(
        default=None, description="what it takes for the selected model to take over from the baseline", examples=[{"margin": 0.03}]
    )
    drift: Drift = Field(default=Drift(), description="how the closed model is asked again, to see whether it changed underneath")
    evaluate: Evaluate = Field(default=Evaluate(), description="how every candidate answers the held-out rows")
    hub: Hub = Field(default=Hub(), description="how hf:// sources are reached")
    tracking: Tracking = Field(default=Tracking(), description="what MLflow records")

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        agree(
            Fault("task", "format `table` needs `task.prompt`", 'add a template over the columns, such as prompt: "{question}"')
            if self.task.prompt is None and self.data.format == "table"
            else None,
            *self._variants(),
            *self._gate(),
        )
        return self

    def _gate(self) -> list[Fault]:
        """A verdict needs something to compare with, on rows that chose nothing."""
        if self.gate is None:
            return []
        faults = []
        if self.baseline is None:
            faults.append(
                Fault("gate", "`gate` needs a `baseline` to compare with", "add one, such as baseline: {provider: openai, model: ...}")
            )
        if self.evaluate.split != "test":
            what = "the gate would judge on the validation rows, which chose the model: that passes worse models too often"
            faults.append(Fault("gate", what, "leave evaluate.split at test"))
        if self.gate.subject == "routed":
            faults.append(Fault("gate", "`subject: routed` needs a router, and this version makes none", "leave gate.subject at candidate"))
        return faults

    def _variants(self) -> list[Fault]:
        """Variants must differ in name, and an adapter must be there to be kept."""
        titles = ["base", "tuned", *(one.title for one in self.quantize)]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        faults = []
        if twice is not None:
            faults.append(Fault("quantize", f"two candidates would be called `{twice}`", "give this variant a `name` of its own"))
        keeps = any(isinstance(one, Bitsandbytes) and one.keep_adapter for one in self.quantize)
        if keeps and (self.train is None or self.train.method == "full"):
            fix = "remove `keep_adapter`, or train one: train: {method: qlora}"
            faults.append(Fault("quantize", "`keep_adapter` needs an adapter, and this recipe trains none", fix))
        return faults


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Workbench recipe"
    return schema
