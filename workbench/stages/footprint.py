"""Stages `footprint:<candidate>`: how long a candidate takes to load and how much memory it needs, alone in a fresh process."""

from __future__ import annotations

from typing import Any

from workbench.recipe.load import Loaded
from workbench.stages.data import examples_of
from workbench.stages.evaluate import Candidate, let_go
from workbench.stages.stage import Stage, Work

#: Prompts that are answered, and the length of the answers in tokens: enough for every kernel to have run.
PROMPTS, NEW_TOKENS = 4, 8


def footprint_stage(loaded: Loaded, candidate: Candidate, data: Stage) -> Stage:
    """The stage that measures what one candidate takes."""
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        from workbench.data.render import Renderer
        from workbench.evaluation.footprint import measure
        from workbench.models.load import load_tokenizer

        let_go()
        weights, trust = work.inputs[candidate.weights.name].path, recipe.model.trust_remote_code
        renderer = Renderer(load_tokenizer(weights, trust_remote_code=trust), recipe.task)
        prompts = [renderer.prompt_ids(example) for example in examples_of(work.inputs["data"].path, "validation")[:PROMPTS]]
        found = measure(
            weights, dtype=recipe.model.dtype, trust_remote_code=trust, prompts=prompts, new_tokens=NEW_TOKENS, workspace=work.workspace
        )
        return {"candidate": candidate.name, **found.to_json()}

    section = {"candidate": candidate.name, "dtype": recipe.model.dtype, "task": recipe.task.model_dump(include={"chat", "system"})}
    return Stage(f"footprint:{candidate.name}", 1, section, make, (candidate.weights, data), ("torch", "transformers"))
