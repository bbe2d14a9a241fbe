"""The closed baseline: stage `evaluate:baseline:task` records its answers, `tune:managed` has its provider tune a model as well."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.example import Example
from workbench.digest import digest
from workbench.errors import EnvironmentFault
from workbench.progress import say, track
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Baseline, Price, Task
from workbench.sources.fetch import Materialised
from workbench.stages.data import examples_of
from workbench.stages.evaluate import TASK
from workbench.stages.scoring import scoring_section
from workbench.stages.stage import Stage, Work

if TYPE_CHECKING:
    from workbench.baselines.conversation import Answer, Request
    from workbench.baselines.record import Recording

#: Names of the closed model's candidate, and of the one that its provider tuned.
BASELINE, MANAGED = "baseline", "managed"
#: Keys that decide how answers are got, and not what they are.
CARRIAGE = {"budget_usd", "concurrency", "timeout_s", "attempts", "api_key_env", "url", "transcript", "fine_tune"}
#: What a simulated answer is said to cost where the recipe names no price, and where that is from.
SIMULATED_PRICE = Price(input=2.0, cached_input=0.5, output=8.0)
SIMULATED_PRICE_SOURCE = "SIMULATED at the list price of gpt-4.1 in April 2025"


def baseline_stage(loaded: Loaded, section: Baseline, data: Stage, transcript: Materialised | None) -> Stage:
    """The stage in which the closed model answers the evaluation rows.

    Args:
        transcript: the file of `baseline.transcript`, where the answers were recorded elsewhere.
    """

    def asked(work: Work) -> Baseline:
        return section

    return _answering(loaded, BASELINE, asked, transcript, baseline_settings(loaded, section, transcript), data, ())


def baseline_settings(loaded: Loaded, section: Baseline, transcript: Materialised | None) -> dict[str, Any]:
    """Everything of the recipe that decides what the closed model answers, and how that is scored."""
    return {
        "baseline": section.model_dump(exclude=CARRIAGE),
        "own_url": section.url is not None,
        "transcript": transcript.digest if transcript is not None else None,
        **_task_settings(loaded),
    }


def managed_stage(loaded: Loaded, section: Baseline, data: Stage) -> Stage:
    """The stage in which a model answers the evaluation rows that its provider tuned on the training rows; its input is that tuning."""

    def make(work: Work) -> dict[str, Any]:
        from workbench.baselines.fine_tune import fine_tune

        examples = examples_of(work.inputs["data"].path, "train")
        folder = work.state / "managed" / digest([settings, work.inputs["data"].key])[:16]
        with track("managed fine-tune", 1.0) as advance:
            tuned = fine_tune(examples, section, folder, advance)
        facts = {**asdict(tuned), "price": tuned.price.price.model_dump(), "price_source": tuned.price.source}
        (work.staging / "job.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return {**facts, "rows": len(examples)}

    assert section.fine_tune is not None
    settings = {
        "fine_tune": section.fine_tune.model_dump(exclude={"budget_usd", "poll_s"}),
        "model": section.model,
        "own_url": section.url is not None,
        "prompt": [section.system, section.prompt],
    }
    tune = Stage(f"tune:{MANAGED}", 1, settings, make, (data,))

    def asked(work: Work) -> Baseline:
        facts = work.inputs[tune.name].facts
        changes = {"model": facts["model"], "price": Price(**facts["price"]), "fine_tune": None, "allow_floating": True}
        return section.model_copy(update=changes)

    kept = {"baseline": section.model_dump(exclude=CARRIAGE | {"model", "price"}), **_task_settings(loaded)}
    return _answering(loaded, MANAGED, asked, None, kept, data, (tune,))


def _answering(
    loaded: Loaded,
    name: str,
    asked: Callable[[Work], Baseline],
    transcript: Materialised | None,
    settings: Mapping[str, Any],
    data: Stage,
    inputs: tuple[Stage, ...],
) -> Stage:
    recipe = loaded.recipe

    def make(work: Work) -> dict[str, Any]:
        from workbench.baselines.conversation import requests
        from workbench.baselines.record import Recording, versions
        from workbench.baselines.recorded import replay
        from workbench.evaluation import outcomes

        examples = examples_of(work.inputs["data"].path, recipe.evaluate.split)
        section = asked(work)
        questions = requests(examples, section)
        if transcript is not None:
            answers = replay(questions, section, transcript.path)
            found = Recording(answers, 0, 0, 0.0, 0.0, versions(answers), "as recorded")
        else:
            with reachable(section, examples, work.workspace) as there:
                found = ask(questions, there, transcript_folder(section, examples, work.state), recipe.task, TASK)
        rows = scored(found.answers, examples, loaded, name)
        table = outcomes.from_rows(rows)
        outcomes.write(table, work.staging / "outcomes.parquet")
        scores = [row["score"] for row in rows if row["score"] is not None]
        costs = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
        latencies = sorted(row["latency_s"] for row in rows if row["latency_s"] is not None)
        simulated = [row["simulated"] for row in rows]
        return {
            "candidate": name,
            "set": TASK,
            "metric": recipe.task.metric,
            "rows": len(rows),
            "scored": len(scores),
            "provider": section.provider,
            "model": section.model,
            "versions": [{"model": model, "fingerprint": mark, "answers": n} for (model, mark), n in found.versions.items()],
            "price": _price_source(section, work) or found.price,
            "cost_per_1k_usd": 1000 * sum(costs) / len(costs) if costs else None,
            "spent_usd": found.spent_usd,
            "latency_p50_s": latencies[len(latencies) // 2] if latencies else None,
            "simulated": True if any(simulated) else None if None in simulated else False,
        }

    return Stage(f"evaluate:{name}:{TASK}", 1, settings, make, (data, *inputs))


def _price_source(section: Baseline, work: Work) -> str | None:
    """Where a price is from that is the recipe's only because a stage put it there."""
    tuned = work.inputs.get(f"tune:{MANAGED}")
    if tuned is not None:
        return str(tuned.facts["price_source"])
    return SIMULATED_PRICE_SOURCE if section.provider == "simulator" and section.price is None else None


def _task_settings(loaded: Loaded) -> dict[str, Any]:
    return {"set": loaded.recipe.evaluate.split, "task": scoring_section(loaded.recipe.task, loaded.base)}


def ask(questions: Sequence[Request], section: Baseline, folder: Path, task: Task, what: str) -> Recording:
    """Have a closed model answer questions, all of them.

    Args:
        section: as `reachable` gives it.
        folder: of the transcript.
        what: is asked, in a word or two.

    Raises:
        WorkbenchError: what `record` raises; EnvironmentFault where questions are left without an answer.
    """
    from workbench.baselines.record import record

    with track(f"{section.model} answers {what}", len(questions)) as advance:
        found = record(questions, section, folder, max_tokens=section.room(task.max_new_tokens), stop=task.stop, advance=advance)
    if found.dead:
        raise EnvironmentFault(
            f"{found.dead} of {len(questions)} questions got no answer after {section.attempts} attempts each",
            where=str(folder / "dead_letters.jsonl"),
            fix="see the reasons there; the same command asks these again, and only these",
        )
    return found


@contextmanager
def reachable(section: Baseline, examples: Sequence[Example], workspace: Path) -> Iterator[Baseline]:
    """The closed model as it can be asked; the simulator runs for as long as it is asked.

    Args:
        examples: all that the simulator has to know: its errors depend on them.
        workspace: where it finds them.
    """
    if section.provider != "simulator":
        yield section
        return
    from workbench.simulator.server import running
    from workbench.simulator.settings import Simulator

    references = workspace / "references.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _references(section, examples))
    references.write_text("".join(lines), encoding="utf-8")
    assert section.model is not None
    settings = Simulator(references=str(references), model=section.model, keyless=True, **section.simulator.model_dump())
    say(f"  SIMULATED: {section.model} is played at an accuracy of {section.simulator.accuracy:g}; that is no evidence about any model")
    with running(settings) as url:
        yield section.model_copy(update={"provider": "openai", "url": url, "price": section.price or SIMULATED_PRICE})


def transcript_folder(section: Baseline, examples: Sequence[Example], state: Path) -> Path:
    """Where the answers of a closed model are kept for good."""
    if section.provider == "simulator":
        # What the simulator says depends on its settings and on what it is told is right, so each has a transcript of its own.
        name = f"simulator-{digest([section.simulator.model_dump(), _references(section, examples)])[:16]}"
    else:
        place = "own" if section.url is not None else section.provider
        name = f"{place}-{digest([section.provider, section.model, section.url is not None])[:16]}"
    return state / "transcripts" / name


def scored(answers: Sequence[Answer], examples: Sequence[Example], loaded: Loaded, name: str) -> list[dict[str, Any]]:
    """Rows of the outcomes table for the answers of candidate `name`, in their order, scored as the recipe's task says."""
    from workbench.evaluation.metrics import scorer

    metric = scorer(loaded.recipe.task, base=loaded.base)
    by_id = {example.id: example for example in examples}
    return [_row(answer, by_id[answer.example_id], metric, loaded.recipe.evaluate.split, name) for answer in answers]


def _references(section: Baseline, examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [{"prompt": _last_words(example, section), "reference": example.references[0]} for example in examples]


def _last_words(example: Example, section: Baseline) -> Any:
    from workbench.baselines.conversation import requests

    (request,) = requests([example], section.model_copy(update={"repeats": 1}))
    return list(request.messages)


def _row(answer: Answer, example: Example, metric: Any, split: str, name: str) -> dict[str, Any]:
    """One row of the outcomes table."""
    row = asdict(answer)
    for key in ("fingerprint", "finish_reason", "replayed"):
        row.pop(key)
    row |= {
        "candidate": name,
        "split": split,
        "prompt": example.prompt if isinstance(example.prompt, str) else json.dumps(example.prompt, ensure_ascii=False),
        "reference": example.references[0],
        "metadata": example.metadata,
        "score": None,
    }
    if answer.status != "answered":
        return row
    score = metric.score(answer.output or "", example.references, example.metadata)
    status = "unscored" if score.value is None else "scored"
    return {**row, "score": score.value, "valid": score.valid, "error": score.reason, "status": status}
