"""The recipe language: every key, its type, its default and what it means.

One file a section or two. Each section is one strict pydantic model; unknown keys are refused. The descriptions here are what
`workbench schema` hands to editors, so they are written for the person who types the recipe.
This module imports neither torch nor anything that does: `workbench check` has to answer in under a second.
"""

from __future__ import annotations

from workbench.recipe.schema.base import (
    ENV_NAME,
    NAME,
    SUFFIX,
    URL,
    EnvName,
    Fault,
    Fraction,
    InconsistentError,
    LocalFunction,
    LocalPath,
    Name,
    PathText,
    Positive,
    Section,
    Seed,
    Text,
)
from workbench.recipe.schema.baseline import Baseline, FineTune, Price, Simulated
from workbench.recipe.schema.data import SPLITS, Columns, Data, Format, HeldOut, Limits, Split, SplitShares
from workbench.recipe.schema.drift import Drift
from workbench.recipe.schema.evaluate import Evaluate, Guard
from workbench.recipe.schema.gate import Floors, Gate
from workbench.recipe.schema.model import Hub, Model
from workbench.recipe.schema.quantize import Bitsandbytes, Bounds, Calibration, CompressedTensors, Gptq, Quantizer, Select
from workbench.recipe.schema.recipe import Recipe, json_schema
from workbench.recipe.schema.task import MetricName, Task
from workbench.recipe.schema.tracking import Tracking
from workbench.recipe.schema.train import EarlyStopping, Launch, Merge, Train

__all__ = [
    "ENV_NAME",
    "NAME",
    "SPLITS",
    "SUFFIX",
    "URL",
    "Baseline",
    "Bitsandbytes",
    "Bounds",
    "Calibration",
    "Columns",
    "CompressedTensors",
    "Data",
    "Drift",
    "EarlyStopping",
    "EnvName",
    "Evaluate",
    "Fault",
    "FineTune",
    "Floors",
    "Format",
    "Fraction",
    "Gate",
    "Gptq",
    "Guard",
    "HeldOut",
    "Hub",
    "InconsistentError",
    "Launch",
    "Limits",
    "LocalFunction",
    "LocalPath",
    "Merge",
    "MetricName",
    "Model",
    "Name",
    "PathText",
    "Positive",
    "Price",
    "Quantizer",
    "Recipe",
    "Section",
    "Seed",
    "Select",
    "Simulated",
    "Split",
    "SplitShares",
    "Task",
    "Text",
    "Tracking",
    "Train",
    "json_schema",
]
