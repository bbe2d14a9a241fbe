"""Stages `outlook`, what the gate could show, before anything is spent on it; and `gate`, the verdict on what was selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError, RecipeError, WorkbenchError
from workbench.progress import say
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Gate
from workbench.stages.baseline import BASELINE, MANAGED
from workbench.stages.data import examples_of
from workbench.stages.evaluate import TASK, Candidate
from workbench.stages.stage import Stage, Work
from workbench.store import Artifact


def outlook_stage(loaded: Loaded, rules: Gate, data: Stage) -> Stage:
    """The stage that says what the gate could show with the rows at hand, and refuses one that cannot pass."""
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        from workbench.evaluation.gate.floors import QUANTILES, examples_to_bound
        from workbench.evaluation.gate.outlook import outlook
        from workbench.evaluation.gate.pairing import slices

        examples = examples_of(work.inputs["data"].path, recipe.evaluate.split)
        # Every look is counted, and already the first is judged more strictly than at alpha.
        found = outlook(len(examples), rules, look=1)
        if found.impossible:
            fix = f"raise data.limit.{recipe.evaluate.split} or the split's share to {found.least} examples, or raise gate.margin"
            raise RecipeError([WorkbenchError(found.text(), where=loaded.where("gate", "margin"), fix=fix)])
        for name, rows in slices([one.metadata for one in examples], rules.slices).items():
            part = outlook(len(rows), rules, look=1)
            if part.impossible:
                fix = f"have {found.least} {recipe.evaluate.split} rows with {name}, raise gate.margin, or do not require this slice"
                raise RecipeError([WorkbenchError(f"slice {name}: {part.text()}", where=loaded.where("gate", "slices"), fix=fix)])
        for name in quantiles:
            least = examples_to_bound(QUANTILES[name], found.alpha)
            if found.n < least:
                what = f"{found.n} examples cannot show that {name} keeps its limit, however fast it is; it takes {least}"
                fix = f"raise data.limit.{recipe.evaluate.split} or the split's share, or bound a lower quantile"
                raise RecipeError([WorkbenchError(what, where=loaded.where("gate", "floors", name), fix=fix)])
        say(f"  {found.text()}")
        return asdict(found)

    quantiles = [name for name, limit in rules.floors.model_dump().items() if limit is not None and name.startswith("latency")]
    kept = rules.model_dump(exclude={"subject", "unscored", "floors"})
    section = {"gate": kept, "quantiles": quantiles, "set": recipe.evaluate.split}
    return Stage("outlook", 1, section, make, (data,), ("scipy", "numpy"))


def gate_stage(
    loaded: Loaded,
    rules: Gate,
    candidates: Sequence[Candidate],
    evaluations: Mapping[str, Mapping[str, Stage]],
    baseline: Stage,
    selection: Stage | None,
) -> Stage:
    """The stage that judges the selected candidate.

    Args:
        candidates: those of which one was selected; the only one, where there was nothing to select.
        evaluations: each candidate's answers, by its name and the set's.
        baseline: the closed model's answers.
    """
    recipe = loaded.recipe
    floors = {guard.name: guard.floor for guard in recipe.evaluate.guards if guard.floor is not None}
    used = tuple(stage for one in candidates for name, stage in evaluations[one.name].items() if name == TASK or name in floors)

    def make(work: Work) -> dict[str, Any]:
        subject = candidates[-1].name if selection is None else work.inputs[selection.name].facts["picked"]
        if subject is None:
            fix = "loosen select.at_most, or add a variant that keeps it"
            raise EvaluationError("there is nothing to judge: no candidate keeps the limits of `select`", where="select", fix=fix)
        own = {name: work.inputs[stage.name] for name, stage in evaluations[subject].items() if stage in used}
        guards = {name: (own[name], floor) for name, floor in floors.items()}
        return judge(rules, subject, own[TASK], work.inputs[baseline.name], guards, work.state)

    inputs = (*used, baseline, *([selection] if selection is not None else []))
    return Stage("gate", 1, {"gate": rules.model_dump(exclude={"discordance"}), "floors": floors}, make, inputs, ("scipy", "numpy"))


def managed_gate_stage(loaded: Loaded, rules: Gate, managed: Stage, baseline: Stage) -> Stage:
    """The stage that judges the provider's own fine-tune by the same rules, but for what only weights of one's own have."""
    own_rules = rules.model_copy(update={"floors": rules.floors.model_copy(update={"size_mb": None})})

    def make(work: Work) -> dict[str, Any]:
        return judge(own_rules, MANAGED, work.inputs[managed.name], work.inputs[baseline.name], {}, work.state)

    section = {"gate": own_rules.model_dump(exclude={"discordance"})}
    return Stage(f"gate:{MANAGED}", 1, section, make, (managed, baseline), ("scipy", "numpy"))


def judge(
    rules: Gate, subject: str, own: Artifact, baseline: Artifact, guards: Mapping[str, tuple[Artifact, float]], state: Path
) -> dict[str, Any]:
    """The verdict, as facts; it is counted as a look at the test set."""
    from workbench.evaluation import outcomes
    from workbench.evaluation.gate import looks
    from workbench.evaluation.gate.judge import gate
    from workbench.evaluation.gate.pairing import pair

    def table(artifact: Artifact) -> Any:
        return outcomes.read(artifact.path / "outcomes.parquet")

    ours, theirs = table(own), table(baseline)
    pair(ours, theirs, unscored=rules.unscored)  # what cannot be judged is no look
    look = looks.take(state, looks.test_digest(theirs), looks.subject_digest(ours), rules.alpha)
    verdict = gate(
        ours,
        theirs,
        rules,
        guards={name: (table(artifact), floor) for name, (artifact, floor) in guards.items()},
        size_bytes=own.facts.get("size_bytes"),
        look=look,
    )
    say(f"  gate: {'SIMULATED ' if verdict.simulated else ''}{verdict.verdict}")
    return {**verdict.to_json(), "subject": subject, "text": verdict.text(), "baseline_candidate": BASELINE}
