"""Stages `compare:<variant>`: a quantised copy beside its parent, both in memory at once: what it says, and how fast."""

from __future__ import annotations

from typing import Any

from workbench.progress import track
from workbench.recipe.load import Loaded
from workbench.stages.data import examples_of
from workbench.stages.evaluate import Candidate, let_go
from workbench.stages.stage import Stage, Work

#: Tokens written in one turn of the speed measurement, and turns of each model.
NEW_TOKENS, REPEATS = 32, 5
#: Most rows, by their content's hash, on which distributions are compared: each gives several tokens, and both models read every one.
ROWS = 400
#: Prompts that make up the long one whose reading is timed.
SPEED_PROMPTS = 32


def compare_stage(loaded: Loaded, variant: Candidate, parent: Candidate, data: Stage) -> Stage:
    """The stage that compares a variant with its parent on the rows that both were evaluated on."""
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        from workbench.data.render import Renderer
        from workbench.evaluation.fidelity import compare
        from workbench.evaluation.speed import compare_speed
        from workbench.models.kernels import kernel
        from workbench.models.load import load_candidate, load_tokenizer

        let_go()
        folders = [work.inputs[one.weights.name].path for one in (parent, variant)]
        trust = recipe.model.trust_remote_code
        renderer = Renderer(load_tokenizer(folders[1], trust_remote_code=trust), recipe.task)
        answered = examples_of(work.inputs["data"].path, recipe.evaluate.split)
        examples = sorted(answered, key=lambda example: example.content_key)[:ROWS]
        one, other = (load_candidate(folder, dtype=recipe.model.dtype, trust_remote_code=trust) for folder in folders)
        with track(f"{variant.name} beside {parent.name}: answers", len(examples)) as advance:
            fidelity = compare(one, other, renderer, examples, batch_tokens=recipe.evaluate.batch_tokens, advance=advance)
        prompts = [renderer.prompt_ids(example) for example in examples[:SPEED_PROMPTS]]
        with track(f"{variant.name} beside {parent.name}: speed", REPEATS) as advance:
            speed = compare_speed(one, other, prompts, new_tokens=NEW_TOKENS, repeats=REPEATS, advance=advance)
        return {
            "candidate": variant.name,
            "parent": parent.name,
            "kernel": kernel(other),
            "parent_kernel": kernel(one),
            "fidelity": fidelity.to_json(),
            "speed": speed.to_json(),
        }

    section = {
        "set": recipe.evaluate.split,
        "names": [variant.name, parent.name],
        "batch_tokens": recipe.evaluate.batch_tokens,
        "dtype": recipe.model.dtype,
        "task": recipe.task.model_dump(include={"chat", "system"}),
    }
    inputs = tuple(dict.fromkeys((variant.weights, parent.weights, data)))
    return Stage(f"compare:{variant.name}", 1, section, make, inputs, ("torch", "transformers"))
