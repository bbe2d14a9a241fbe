"""Stages `calibration:<variant>`: what stands against a quantised variant, before any time is spent, and the texts to fit it to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.data.render import Renderer, quantile
from workbench.errors import RecipeError, WorkbenchError
from workbench.models.facts import read_facts
from workbench.quantization import calibration
from workbench.quantization.quantizer import method_of
from workbench.recipe.load import Loaded
from workbench.recipe.schema import SPLITS, Calibration
from workbench.sources.fetch import Materialised
from workbench.stages.data import examples_of, stored
from workbench.stages.stage import Stage, Work

#: The calibration texts in the artifact: token ids, one row a line.
ROWS = "rows.jsonl"


def calibration_stage(loaded: Loaded, index: int, model: Stage, data: Stage, general: Materialised | None) -> Stage:
    """The stage that prepares variant `quantize[index]`.

    Args:
        general: the file of `calibration.general`, where one is given.
    """
    recipe, section = loaded.recipe, loaded.recipe.quantize[index]
    method = method_of(section, loaded.base)

    def make(work: Work) -> dict[str, Any]:
        model_folder = work.inputs["model"].path
        refuse(loaded, index, model_folder)
        if method.calibration is None:
            return {"title": section.title, "rows": 0}
        rows, facts = _texts(loaded, method.calibration, work, loaded.where("quantize", index, "calibration"), general)
        (work.staging / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"title": section.title, **facts}

    settings = {
        "quantize": section.model_dump(exclude={"python"}),
        "general": general.digest if general is not None else None,
        "task": recipe.task.model_dump(include={"chat", "system"}),
        "dtype": recipe.model.dtype,
    }
    return Stage(f"calibration:{section.title}", 1, settings, make, (model, data), method.libraries)


def refuse(loaded: Loaded, index: int, model: Path) -> None:
    """Raise for everything that is known to stand against a variant.

    Raises:
        RecipeError: with every reason, at the line of the recipe that causes it.
    """
    from workbench.models.load import quantization
    from workbench.models.machine import available_memory

    section, facts = loaded.recipe.quantize[index], read_facts(model)
    method = method_of(section, loaded.base)
    problems = [WorkbenchError(one.what, where=loaded.where("quantize", index, one.key), fix=one.fix) for one in method.refusals(facts)]
    already = quantization(model)
    if already is not None:
        what = f"the model is quantised already ({already}); to quantise it again would add one error to the other"
        problems.append(WorkbenchError(what, where=loaded.where("model", "source"), fix="name the 16-bit model, or remove `quantize`"))
    needed, there = method.memory(facts, loaded.recipe.model.dtype), available_memory()
    if needed > there:
        what = f"quantising takes about {needed / 2**30:.1f} GiB of memory, and {there / 2**30:.1f} GiB are free"
        fix = "free some, lower calibration.rows or calibration.max_length, or run on a larger machine"
        problems.append(WorkbenchError(what, where=loaded.where("quantize", index), fix=fix))
    if problems:
        raise RecipeError(problems)


def _texts(
    loaded: Loaded, settings: Calibration, work: Work, where: str, general: Materialised | None
) -> tuple[list[list[int]], dict[str, Any]]:
    """The calibration texts as token ids, and what is to be known about them."""
    from workbench.models.load import load_tokenizer

    recipe, model = loaded.recipe, work.inputs["model"].path
    renderer = Renderer(load_tokenizer(model, trust_remote_code=recipe.model.trust_remote_code), recipe.task)
    examples = examples_of(work.inputs["data"].path, "train")
    rendered = [list(renderer.row(example, "completion").input_ids) for example in examples]
    own, others = calibration.settings_of(settings)
    chosen = calibration.spread(examples, [len(row) for row in rendered], own, settings.seed)
    rows = [rendered[number] for number in chosen]
    if general is not None:
        texts = calibration.general_texts(general.path, others, settings.seed)
        held_out = [example for split in SPLITS if split != "train" for example in stored(work.inputs["data"].path, split)]
        calibration.refuse_overlap(texts, held_out, where)
        rows += [renderer.tokenizer(text)["input_ids"] for text in texts]
    cut = sum(len(row) > settings.max_length for row in rows)
    rows = [row[: settings.max_length] for row in rows]
    lengths = [len(row) for row in rows]
    calibration.refuse_too_few(sum(lengths), max(width for _, width in read_facts(model).linear_shapes.values()), where)
    return rows, {
        "rows": len(rows),
        "task_rows": len(chosen),
        "answers": len({examples[number].references[0] for number in chosen}),
        "general_rows": len(rows) - len(chosen),
        "general_origin": general.origin if general is not None else None,
        "tokens": sum(lengths),
        "length_p50": quantile(lengths, 0.5),
        "length_max": max(lengths),
        "cut": cut,
        "rendering": renderer.fingerprint,
    }
