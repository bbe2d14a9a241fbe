"""Asking a closed model again, to see whether it is still the one that was recorded.

.workbench/drift/<time>-<digest>/   one check: drift.json, outcomes.parquet (the fresh answers), transcript.jsonl, tracking.jsonl
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workbench.baselines.budget import BudgetExceeded
from workbench.baselines.conversation import requests
from workbench.check import check_static
from workbench.data.example import Example
from workbench.digest import digest
from workbench.disk import fsync
from workbench.errors import EvaluationError, WorkbenchError, disk_faults
from workbench.evaluation.drift import Drift, compare
from workbench.plan import plan
from workbench.progress import say
from workbench.recipe.load import Loaded, load
from workbench.recipe.schema import Baseline
from workbench.recipe.schema.drift import Drift as Rules
from workbench.report import find_run, stage_artifact
from workbench.stages.baseline import BASELINE, ask, baseline_settings, reachable, scored
from workbench.stages.data import examples_of
from workbench.stages.evaluate import TASK
from workbench.stages.stale import CHECKS, RESULT, dependents
from workbench.store import Artifact, Store
from workbench.tracking import Journal, sync

#: Seconds for which the answers of a check that was cut off are kept; later the same command asks everything anew.
KEPT_S = 24 * 3600


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        found: what the comparison says.
        facts: all of it, as in drift.json.
        folder: where it is kept.
    """

    found: Drift
    facts: Mapping[str, Any]
    folder: Path

    def text(self) -> str:
        """For a terminal."""
        lines = [self.found.text()]
        if self.found.drifted:
            lines.append(f"  stale from now on: {', '.join(self.facts['stale']) or 'nothing was concluded from these answers yet'}")
            lines.append("  to judge again, name another pinned version under `baseline.model` and run: it is then recorded anew")
        lines += [f"  {line}" for line in _own_text(self.facts["own"])]
        lines.append(f"  kept in {self.folder}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Recorded:
    """A run whose baseline was recorded.

    Attributes:
        run: its run.json.
        data: the artifact with its examples.
        baseline: the artifact with the recorded answers.
        section: how they were asked for.
    """

    loaded: Loaded
    run: Mapping[str, Any]
    store: Store
    data: Artifact
    baseline: Artifact
    section: Baseline


def drift(which: str, state: Path, *, overrides: Sequence[str] = (), changes: Mapping[str, Any]) -> Check:
    """Ask the closed model of a run its canaries again, and compare.

    A check that is cut off leaves no result; within a day the same call goes on with its answers.

    Args:
        which: a recipe's file, or what `report.find_run` understands.
        overrides: `key.path=value` texts, such as another `baseline.url` of the same model.
        changes: keys of the recipe's section `drift` with another value for this check; None leaves a key as it is.

    Raises:
        EvaluationError: there is no closed model that could be asked, or not in the way it was asked then.
        WorkbenchError: the run or one of its artifacts is missing; all that recording raises.
    """
    from workbench.evaluation import outcomes

    recorded = _recorded(which, state, overrides)
    rules = _rules(recorded.loaded, changes)
    table = outcomes.read(recorded.baseline.path / "outcomes.parquet")
    examples = examples_of(recorded.data.path, recorded.loaded.recipe.evaluate.split)
    chosen = canaries(examples, set(table["example_id"].to_pylist()), rules.canaries)
    own = _own_weights(recorded)
    asked = recorded.section.model_copy(update={"repeats": rules.repeats, "budget_usd": rules.budget_usd})
    questions = requests(chosen, asked)
    say(f"asking {asked.model} {len(chosen)} canaries, {rules.repeats} times each")
    name = digest([recorded.baseline.name, asked.url, rules.repeats, [one.prompt_digest for one in questions]])[:10]
    folder = _folder(state, name)
    with tempfile.TemporaryDirectory() as workspace, reachable(asked, examples, Path(workspace)) as there:
        try:
            answers = ask(questions, there, folder, recorded.loaded.recipe.task, "the canaries")
        except BudgetExceeded as error:
            fix = "raise --budget, or ask less (--canaries, --repeats); the same command goes on with what was answered today"
            raise BudgetExceeded(error.what, where="drift.budget_usd", fix=fix) from error
    fresh = outcomes.from_rows(scored(answers.answers, chosen, recorded.loaded, BASELINE))
    ids = {one.id for one in chosen}
    found = compare(
        table.filter([example in ids for example in table["example_id"].to_pylist()]),
        fresh,
        recorded_versions={(one["model"], one["fingerprint"]) for one in recorded.baseline.facts["versions"]},
        fresh_versions=set(answers.versions),
        alpha=rules.alpha,
    )
    now = datetime.now(UTC)
    facts = {
        "id": f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{name}",
        "time": now.isoformat(timespec="seconds"),
        "recipe": recorded.loaded.recipe.name,
        "run": recorded.run["id"],
        "baseline": recorded.baseline.name,
        "provider": recorded.section.provider,
        "model": recorded.section.model,
        **found.to_json(),
        "spent_usd": answers.spent_usd,
        "price": answers.price,
        "own": own,
        "stale": dependents(recorded.store, recorded.baseline) if found.drifted else [],
    }
    outcomes.write(fresh, folder / "outcomes.parquet")
    return Check(found, facts, _publish(folder, facts, recorded))


def canaries(examples: Sequence[Example], answered: set[str], count: int) -> list[Example]:
    """The examples to ask again, out of those that were answered: chosen by hash, so that a larger choice contains every smaller one."""
    known = [one for one in examples if one.id in answered]
    # Hashed once more, since the id itself has decided already on which split an example is in.
    return sorted(known, key=lambda one: digest(["canary", one.id]))[:count]


def _recorded(which: str, state: Path, overrides: Sequence[str]) -> _Recorded:
    loaded, folder = _run(which, state, overrides)
    run, store = json.loads((folder / "run.json").read_text()), Store(state)
    stages = {stage["name"]: stage for stage in run["stages"]}
    name = f"evaluate:{BASELINE}:{TASK}"
    if name not in stages:
        raise EvaluationError(
            "the closed model was not asked in this run yet", where=str(folder), fix="run the recipe to its end first: workbench run RECIPE"
        )
    data, baseline = (stage_artifact(store, stages[one]) for one in ("data", name))
    section = _askable(loaded)
    then = next(ingredients["section"] for one, ingredients in store.artifacts() if one.name == baseline.name)
    if digest(then) != digest(baseline_settings(loaded, section, None)):
        fix = "leave the sections baseline, task and evaluate as they were; only where and how fast it is asked may change"
        raise EvaluationError("the closed model would be asked or scored otherwise than it was recorded", where=which, fix=fix)
    return _Recorded(loaded, run, store, data, baseline, section)


def _run(which: str, state: Path, overrides: Sequence[str]) -> tuple[Loaded, Path]:
    """The recipe, and the folder of its run."""
    if not (Path(which).is_file() or Path(which).suffix in (".yaml", ".yml")):
        folder = find_run(state, which)
        return load(folder / "recipe.resolved.yaml", overrides), folder
    loaded = load(Path(which), overrides)
    _askable(loaded)
    check_static(loaded)
    folder = state / "runs" / plan(loaded).run_id
    if not (folder / "run.json").is_file():
        raise WorkbenchError("this recipe was not run as it stands", where=which, fix="run it, or name the run: workbench drift RUN")
    return loaded, folder


def _rules(loaded: Loaded, changes: Mapping[str, Any]) -> Rules:
    """The recipe's section, with what the command line changes."""
    try:
        return Rules.model_validate(loaded.recipe.drift.model_dump() | {key: value for key, value in changes.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise EvaluationError(f"{name} is {first['input']!r}: {first['msg']}", where="drift", fix="see workbench drift --help") from error


def _askable(loaded: Loaded) -> Baseline:
    """The recipe's closed model, if it is one that can be asked.

    Raises:
        EvaluationError: there is none, or a file of its answers only.
    """
    section = loaded.recipe.baseline
    if section is None:
        fix = "add one, such as baseline: {provider: openai, model: ...}, and run the recipe"
        raise EvaluationError("the recipe has no `baseline`: there is no closed model to ask", where=str(loaded.path), fix=fix)
    if section.provider == "transcript":
        what = "the baseline is a file of recorded answers: there is nobody to ask again"
        fix = "a check needs the model itself: baseline: {provider: openai, model: ...}"
        raise EvaluationError(what, where=loaded.where("baseline", "provider"), fix=fix)
    return section


def _own_weights(recorded: _Recorded) -> list[dict[str, Any]]:
    """Whether the run's own models are, byte by byte, what was published: all that it takes to know of open weights."""
    stages = {stage["artifact"]: stage for stage in recorded.run["stages"]}
    rows = []
    for candidate in recorded.run["candidates"]:
        weights = recorded.store.find(stages[candidate["model"]]["name"], stages[candidate["model"]]["key"])
        damaged = ["a file is missing or of another size"] if weights is None else recorded.store.damaged(weights)
        rows.append({"candidate": candidate["name"], "artifact": candidate["model"], "damaged": damaged})
    return rows


def _own_text(own: Sequence[Mapping[str, Any]]) -> list[str]:
    whole = [f"{one['candidate']} ({one['artifact']})" for one in own if not one["damaged"]]
    lines = [f"the model of one's own: unchanged, by digest: {', '.join(whole)}"] if whole else []
    return lines + [
        f"the model of one's own: {one['candidate']} ({one['artifact']}) CHANGED ON DISK: {', '.join(one['damaged'])}"
        for one in own
        if one["damaged"]
    ]


def _folder(state: Path, name: str) -> Path:
    """Where a check is made; it has another name until it is complete."""
    folder = state / CHECKS / f".{name}.partial"
    with disk_faults(f"preparing {folder}"):
        if folder.exists() and time.time() - max(one.stat().st_mtime for one in (folder, *folder.iterdir())) > KEPT_S:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _publish(folder: Path, facts: Mapping[str, Any], recorded: _Recorded) -> Path:
    """Give a complete check its name, in one rename, and tell MLflow; returns where it is."""
    target = folder.parent / str(facts["id"])
    with disk_faults(f"writing {target}"):
        (folder / RESULT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (folder / "tracking.jsonl").unlink(missing_ok=True)  # of an attempt that was cut off here
        _track(folder, facts, recorded)
        for path in (*folder.iterdir(), folder):
            fsync(path)
        folder.rename(target)
        fsync(target.parent)
    result = sync(target)
    if result.error and result.first:
        say(f"warning: MLflow is not reachable ({result.error}); everything is kept locally, `workbench sync` sends it later")
    return target


def _track(folder: Path, facts: Mapping[str, Any], recorded: _Recorded) -> None:
    """The check as a run of the recipe's experiment."""
    recipe = recorded.loaded.recipe
    journal = Journal.open(folder, recipe.tracking.experiment or recipe.name)
    tags = {name: facts[name] for name in ("recipe", "run", "baseline", "simulated")} | {"drift": facts["verdict"]}
    run = journal.start(f"drift-{facts['id']}", tags={f"workbench.{name}": value for name, value in tags.items()})
    journal.params(run, {"model": facts["model"], "canaries": facts["canaries"], "repeats": facts["repeats"][1], "alpha": facts["alpha"]})
    numbers = {f"drift/{key}": facts["score"][key] for key in ("recorded", "fresh", "difference", "ci_low", "ci_high", "p_value")}
    wording = {f"drift/wording_{key}": facts["wording"][key] for key in ("changed", "between", "within", "p_value")}
    journal.metrics(run, {**numbers, **wording, "drift/drifted": float(facts["drifted"]), "drift/spent_usd": facts["spent_usd"]})
    for name in (RESULT, "outcomes.parquet"):
        journal.file(run, folder / name)
    journal.end(run)
