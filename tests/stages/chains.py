"""The first stages of a recipe in this process, so that one stage can be run on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.training.chain import RECIPE, make_recipe
from workbench import pipeline
from workbench.plan import Plan
from workbench.plan import plan as plan_of
from workbench.recipe.load import load
from workbench.store import Artifact, Store


def plan(folder: Path, *overrides: str, text: str = RECIPE) -> Plan:
    """The plan of the tiny recipe, made in `folder` unless it is there."""
    path = folder / "recipe.yaml"
    return plan_of(load(path if path.exists() else make_recipe(folder, text=text), list(overrides)))


def run(the_plan: Plan, state: Path, stages: Sequence[str]) -> Mapping[str, Artifact]:
    """Make these stages, in their order; what is in the store is found there."""
    store, made = Store(state), {}
    for stage in the_plan.stages:
        if stage.name in stages:
            made[stage.name] = pipeline.make(stage, store, {one.name: made[one.name] for one in stage.inputs}, lambda metrics, step: None)
    return made
