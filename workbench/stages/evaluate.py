"""Stage `evaluate`: one candidate answers one set of examples; the artifact is its outcomes table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import EvaluationError
from workbench.progress import track
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Task
from workbench.stages.data import GUARD, examples_of, guard_task
from workbench.stages.scoring import scoring_section
from workbench.stages.stage import Stage, Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The set that the recipe's own task is judged on, and the one that a model is selected by; every other set is a guard.
TASK, VALIDATION = "task", "validation"


@dataclass(frozen=True)
class Candidate:
    """One servable thing.

    Attributes:
        name: as in the outcomes table.
        kind: base, merged, full or quantized.
        weights: the stage whose artifact is its model folder.
        trained: the stage that trained it; None for the base.
        parent: the 16-bit candidate that it is a quantised copy of; None for one that is no copy.
    """

    name: str
    kind: str
    weights: Stage
    trained: Stage | None = None
    parent: str | None = None


@dataclass(frozen=True)
class Closed:
    """A model behind somebody else's API.

    Attributes:
        name: as in the outcomes table.
        kind: baseline, or managed where its provider tuned it.
        answers: the stage that records what it says.
    """

    name: str
    kind: str
    answers: Stage


def evaluate_stages(loaded: Loaded, candidate: Candidate, data: Stage, guards: Mapping[str, Stage], *, selecting: bool) -> dict[str, Stage]:
    """One stage for the task's own examples, and one for each guard set, by the set's name.

    Args:
        guards: the stage that reads each guard set, by its name.
        selecting: whether the validation rows are answered as well.
    """
    recipe = loaded.recipe
    stages = {TASK: _stage(loaded, candidate, data, TASK, recipe.evaluate.split, recipe.task)}
    if selecting:
        stages[VALIDATION] = _stage(loaded, candidate, data, VALIDATION, "validation", recipe.task)
    for guard in recipe.evaluate.guards:
        stages[guard.name] = _stage(loaded, candidate, guards[guard.name], guard.name, GUARD, guard_task(guard, recipe.task))
    return stages


def _stage(loaded: Loaded, candidate: Candidate, data: Stage, name: str, which: str, task: Task) -> Stage:
    recipe = loaded.recipe

    def make(work: Work) -> Mapping[str, Any]:
        from workbench.data.render import Renderer
        from workbench.evaluation import outcomes
        from workbench.evaluation.answer import answer
        from workbench.evaluation.metrics import scorer
        from workbench.models.load import load_tokenizer
        from workbench.models.machine import peak_memory

        weights = work.inputs[candidate.weights.name]
        metric = scorer(task, base=loaded.base)
        examples = examples_of(work.inputs[data.name].path, which)
        renderer = Renderer(load_tokenizer(weights.path, trust_remote_code=recipe.model.trust_remote_code), task)
        if candidate.trained is not None:
            own = Renderer(renderer.tokenizer, recipe.task).fingerprint
            if own != work.inputs[candidate.trained.name].facts["rendering"]:
                raise EvaluationError(
                    f"candidate {candidate.name!r} renders prompts to other tokens than it was trained on",
                    where=str(weights.path),
                    fix="its tokenizer or chat template was changed; remove this artifact and run again",
                )
        started = time.perf_counter()
        model = _load(weights.path, recipe.model.dtype, recipe.model.trust_remote_code)
        load_seconds = time.perf_counter() - started
        with track(f"{candidate.name} answers {name}", len(examples)) as advance:
            started = time.perf_counter()
            rows = answer(model, renderer, examples, task, metric, batch_tokens=recipe.evaluate.batch_tokens, advance=advance)
            seconds = time.perf_counter() - started
        split = which if name in (TASK, VALIDATION) else f"guard:{name}"
        names = {"candidate": candidate.name, "split": split, "model_requested": candidate.name, "model_answered": weights.name}
        table = outcomes.from_rows([{**row, **names} for row in rows])
        outcomes.write(table, work.staging / "outcomes.parquet")
        tokens = sum(row["input_tokens"] + row["output_tokens"] for row in rows)
        scores = [row["score"] for row in rows if row["score"] is not None]
        if scores:
            work.report({f"{name}/score": sum(scores) / len(scores), f"{name}/tokens_per_s": tokens / seconds}, None)
        return {
            "candidate": candidate.name,
            "kind": candidate.kind,
            "set": name,
            "metric": task.metric,
            "rows": len(rows),
            "scored": len(scores),
            "tokens": tokens,
            "answer_seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "load_seconds": load_seconds,
            "peak_memory_bytes": peak_memory(),
            "size_bytes": sum(file.stat().st_size for file in weights.path.rglob("*.safetensors")),
            "model": weights.name,
            "rendering": renderer.fingerprint,
        }

    section = {
        "set": which,
        "task": scoring_section(task, loaded.base),
        "engine": recipe.evaluate.engine,
        "batch_tokens": recipe.evaluate.batch_tokens,
        "dtype": recipe.model.dtype,
        "candidate": candidate.name,
    }
    inputs = tuple(dict.fromkeys(stage for stage in (candidate.weights, data, candidate.trained) if stage is not None))
    return Stage(f"evaluate:{candidate.name}:{name}", 1, section, make, inputs, ("torch", "transformers"))


def let_go() -> None:
    """Give up the memory of the model that answered last."""
    _load.cache_clear()


@lru_cache(maxsize=1)  # one candidate's sets are answered one after the other
def _load(folder: Path, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    from workbench.models.load import load_candidate

    return load_candidate(folder, dtype=dtype, trust_remote_code=trust_remote_code)
