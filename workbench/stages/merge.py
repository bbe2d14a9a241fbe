"""Stage `merge`: the adapter folded into the weights in 16 bits, and the proof that the model still says the same."""

from __future__ import annotations

from typing import Any

from workbench.progress import track
from workbench.recipe.load import Loaded
from workbench.stages.data import examples_of
from workbench.stages.stage import Stage, Work


def merge_stage(loaded: Loaded, model: Stage, data: Stage, train: Stage) -> Stage:
    """The stage that merges the adapter of a recipe."""
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        from workbench.data.render import Renderer
        from workbench.models.load import load_tokenizer
        from workbench.training.merge import check_parity, merge

        base, adapter = work.inputs["model"].path, work.inputs["train"].path
        trust = recipe.model.trust_remote_code
        renderer = Renderer(load_tokenizer(base, trust_remote_code=trust), recipe.task)
        merge(base, adapter, work.staging, dtype=recipe.model.dtype, trust_remote_code=trust)
        prompts = [
            renderer.prompt_ids(example) for example in examples_of(work.inputs["data"].path, "validation")[: recipe.merge.check_prompts]
        ]
        with track("comparing merged model and adapter", len(prompts)) as advance:
            parity = check_parity(
                base,
                adapter,
                work.staging,
                prompts,
                tokens=recipe.merge.check_tokens,
                max_logit_difference=recipe.merge.max_logit_difference,
                dtype=recipe.model.dtype,
                trust_remote_code=trust,
                advance=advance,
            )
        return {**parity.to_json(), "rendering": renderer.fingerprint}

    section = {"merge": recipe.merge.model_dump(), "dtype": recipe.model.dtype, "task": recipe.task.model_dump(include={"chat", "system"})}
    return Stage("merge", 1, section, make, (model, data, train), ("torch", "transformers", "peft"))
