"""Section `tracking`: what MLflow records."""

from __future__ import annotations

from pydantic import Field

from workbench.recipe.schema.base import Section, Text


class Tracking(Section):
    """MLflow."""

    experiment: Text | None = Field(default=None, description="default: the recipe's name")
    register_model: bool = Field(default=True, description="register the tuned model in the MLflow model registry")
