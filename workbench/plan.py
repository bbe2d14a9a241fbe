"""The stage graph of a recipe: what is fetched, which stages there are, and what depends on what. Nothing is computed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from workbench.baselines.client import read_key
from workbench.baselines.prices import quote, tuned_quote
from workbench.digest import digest
from workbench.evaluation.metrics import scorer
from workbench.progress import say
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Split
from workbench.sources.fetch import Materialised, default_cache, materialise
from workbench.sources.reference import parse
from workbench.stages.baseline import BASELINE, MANAGED, baseline_stage, managed_stage
from workbench.stages.calibration import calibration_stage
from workbench.stages.compare import compare_stage
from workbench.stages.data import data_stage, guard_stage
from workbench.stages.evaluate import VALIDATION, Candidate, Closed, evaluate_stages
from workbench.stages.footprint import footprint_stage
from workbench.stages.gate import gate_stage, managed_gate_stage, outlook_stage
from workbench.stages.merge import merge_stage
from workbench.stages.model import model_stage
from workbench.stages.quantize import keeps_adapter, quantize_stage
from workbench.stages.select import select_stage
from workbench.stages.stage import Stage
from workbench.stages.train import train_stage
from workbench.training.launch import launched_together, processes_asked_for, world_size


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for.

    Attributes:
        loaded: the recipe.
        stages: in an order in which every stage comes after its inputs.
        candidates: what is evaluated here.
        closed: what is asked over somebody else's API.
        evaluations: the stage of each candidate and set, by candidate name and set name.
        sources: what was fetched, by the recipe key that names it.
    """

    loaded: Loaded
    stages: tuple[Stage, ...]
    candidates: tuple[Candidate, ...]
    closed: tuple[Closed, ...]
    evaluations: Mapping[str, Mapping[str, Stage]]
    sources: Mapping[str, Materialised]

    @property
    def run_id(self) -> str:
        """The same for the same recipe on the same inputs and libraries, so that a killed run is continued, not begun again."""
        return f"{self.loaded.recipe.name}-{digest([[stage.key for stage in self.stages], self.loaded.recipe.tracking.model_dump()])[:10]}"


def plan(loaded: Loaded) -> Plan:
    """Fetch the sources of a recipe and lay out its stages. Nothing is computed yet.

    Raises:
        SourceError, EnvironmentFault: a source cannot be had.
    """
    processes = world_size() if launched_together() else processes_asked_for()
    if processes is not None:  # whoever launched decided how many there are
        launch = loaded.recipe.launch.model_copy(update={"num_processes": processes})
        loaded = dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"launch": launch}))
    recipe = loaded.recipe
    sources = fetch_sources(loaded)
    model, data, guards = prepared(loaded, sources)
    texts = [
        calibration_stage(loaded, index, model, data, sources.get(f"quantize.{index}.calibration.general"))
        for index in range(len(recipe.quantize))
    ]
    outlook = [outlook_stage(loaded, recipe.gate, data)] if recipe.gate is not None else []
    stages, candidates = [model, data, *guards.values(), *outlook, *texts], [Candidate("base", "base", model)]
    if recipe.train is not None:
        train = train_stage(loaded, recipe.train, model, data)
        stages.append(train)
        if recipe.train.method == "full":
            candidates.append(Candidate("tuned", "full", train, train))
        else:
            merge = merge_stage(loaded, model, data, train)
            stages.append(merge)
            candidates.append(Candidate("tuned", "merged", merge, train))
    parent = candidates[-1]
    for index, section in enumerate(recipe.quantize):
        keep = keeps_adapter(section)
        weights = quantize_stage(loaded, index, model if keep else parent.weights, texts[index], data, parent.trained if keep else None)
        stages.append(weights)
        candidates.append(Candidate(section.title, "quantized", weights, parent.trained, parent.name))
    selecting = bool(recipe.quantize)
    evaluations = {
        candidate.name: evaluate_stages(
            loaded, candidate, data, guards, selecting=selecting and (candidate.parent is not None or candidate is parent)
        )
        for candidate in candidates
    }
    stages += [stage for sets in evaluations.values() for stage in sets.values()]
    selection: Stage | None = None
    variants = [candidate for candidate in candidates if candidate.parent is not None]
    if selecting:
        footprints = {candidate.name: footprint_stage(loaded, candidate, data) for candidate in (parent, *variants)}
        compared = {variant.name: compare_stage(loaded, variant, parent, data) for variant in variants}
        validated = {name: evaluations[name][VALIDATION] for name in footprints}
        selection = select_stage(loaded, (parent, *variants), validated, footprints, compared)
        stages += [*footprints.values(), *compared.values(), selection]
    closed = _closed(loaded, data, sources)
    stages += [stage for one in closed for stage in (*(x for x in one.answers.inputs if x is not data), one.answers)]
    if recipe.gate is not None:
        baseline = closed[0].answers
        stages.append(gate_stage(loaded, recipe.gate, (parent, *variants), evaluations, baseline, selection))
        stages += [managed_gate_stage(loaded, recipe.gate, one.answers, baseline) for one in closed[1:]]
    return Plan(loaded, tuple(stages), tuple(candidates), closed, evaluations, sources)


def _closed(loaded: Loaded, data: Stage, sources: Mapping[str, Materialised]) -> tuple[Closed, ...]:
    """The closed model of a recipe, and the one that its provider is to tune.

    Raises:
        EvaluationError: its key is not in the environment, or nobody knows its price; better said before training than after.
    """
    section = loaded.recipe.baseline
    if section is None:
        return ()
    if section.provider in ("openai", "anthropic", "google"):
        read_key(section)
        quote(section)
    found = [Closed(BASELINE, "baseline", baseline_stage(loaded, section, data, sources.get("baseline.transcript")))]
    if section.fine_tune is not None:
        tuned_quote(section, section.fine_tune.model or section.model or "")
        found.append(Closed(MANAGED, "managed", managed_stage(loaded, section, data)))
    return tuple(found)


def prepared(loaded: Loaded, sources: Mapping[str, Materialised]) -> tuple[Stage, Stage, dict[str, Stage]]:
    """The stages `model` and `data`, and the stage of each guard set by its name: what all else stands on, and next to free.

    Raises:
        EvaluationError: a metric lacks what it needs, such as a function that can be imported; better said before training than after.
    """
    recipe = loaded.recipe
    for task in [recipe.task, *(guard.task for guard in recipe.evaluate.guards if guard.task is not None)]:
        scorer(task, base=loaded.base)
    held_out = {cast(Split, key.rpartition(".")[2]): file for key, file in sources.items() if key.startswith("data.held_out.")}
    data = data_stage(loaded, sources["data.source"], held_out)
    guards = {
        guard.name: guard_stage(loaded, guard, sources[f"evaluate.guards.{index}.source"], data)
        for index, guard in enumerate(recipe.evaluate.guards)
    }
    return model_stage(loaded, sources["model.source"]), data, guards


def fetch_sources(loaded: Loaded) -> dict[str, Materialised]:
    """Everything the recipe names, made files on this machine, by the key that names it."""
    recipe = loaded.recipe
    texts: dict[str, str] = {"model.source": recipe.model.source, "data.source": recipe.data.source}
    texts |= {f"data.held_out.{split}": text for split, text in recipe.data.held_out.model_dump().items() if text is not None}
    texts |= {f"evaluate.guards.{index}.source": guard.source for index, guard in enumerate(recipe.evaluate.guards)}
    for index, section in enumerate(recipe.quantize):
        calibration = getattr(section, "calibration", None)
        if calibration is not None and calibration.general is not None:
            texts[f"quantize.{index}.calibration.general"] = calibration.general
    if recipe.baseline is not None and recipe.baseline.transcript is not None:
        texts["baseline.transcript"] = recipe.baseline.transcript
    found = {}
    for key, text in texts.items():
        trust = key == "model.source" and recipe.model.trust_remote_code
        found[key] = materialise(parse(text, base=loaded.base), cache=default_cache(), hub=recipe.hub, trust_remote_code=trust)
        for warning in found[key].warnings:
            say(f"warning: {key}: {warning}")
    return found
