"""Every key of `baseline` and `gate` changes something: what is sent, what it costs, who is asked, what is refused, or the verdict."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.baselines.standin import Server, content, serve
from tests.baselines.test_baselines_fine_tune import Desk
from tests.support.judged import judged
from tests.support.workplace import NOBODY, Workplace, questions
from workbench import pipeline
from workbench.errors import WorkbenchError
from workbench.plan import plan
from workbench.recipe import shape
from workbench.stages.stage import Stage
from workbench.store import Artifact, Store

Observe = Callable[..., object]
#: What a recipe needs to ask the stand-in at {url}; each effect adds its key.
ASKED: dict[str, Any] = {"provider": "openai", "model": "closed-001", "price": {"input": 1, "output": 4}, "concurrency": 4, "attempts": 2}
TUNED: dict[str, Any] = {"model": "gpt-4.1-mini-2025-04-14", "poll_s": 0.01, "training_price": 5, "price": {"input": 1, "output": 4}}
QUESTIONS = 41


@dataclass(frozen=True)
class Effect:
    """What is different when a key is.

    Attributes:
        observe: called with a workplace and one of the values; under `one` it must work, under `other` it must come to something else.
        one, other: what the section says about the key, as a nested mapping.
    """

    observe: Observe
    one: dict[str, Any]
    other: dict[str, Any]


def made(place: Workplace, stage: str, *overrides: str, state: Path | None = None) -> Artifact:
    """The artifact of a stage and all that it stands on, in the workplace's store or in one of its own."""
    the_plan = plan(place.load(*overrides))
    store = Store(state or place.state)

    def make(one: Stage) -> Artifact:
        return pipeline.make(one, store, {item.name: make(item) for item in one.inputs}, lambda metrics, step: None)

    return make(next(one for one in the_plan.stages if one.name == stage))


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    from workbench.evaluation import outcomes

    found: list[dict[str, Any]] = outcomes.read(artifact.path / "outcomes.parquet").to_pylist()
    return found


def section(*parts: dict[str, Any]) -> str:
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return f"baseline={json.dumps(merged)}"


def answered(place: Workplace, server: Server, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """The closed model's answers; nothing of earlier answers is there."""
    with tempfile.TemporaryDirectory() as state:
        asked = section(ASKED, {"url": server.url}, keys)
        return rows(made(place, "evaluate:baseline:task", asked, "gate=null", state=Path(state)))


def sent(place: Workplace, keys: dict[str, Any]) -> object:
    """The requests, and the key that came with them."""
    with serve(Server()) as server:
        answered(place, server, keys)
    bodies = sorted(json.dumps(body, sort_keys=True) for body in server.bodies)
    return bodies, {headers.get("Authorization") for headers in server.headers}


def cost(place: Workplace, keys: dict[str, Any]) -> object:
    with serve(Server()) as server:
        return [row["cost_usd"] for row in answered(place, server, keys)]


def most_in_flight(place: Workplace, keys: dict[str, Any]) -> object:
    with serve(Server(delay_s=0.02)) as server:
        answered(place, server, keys)
    return server.most_in_flight


def asked_slowly(place: Workplace, keys: dict[str, Any]) -> object:
    with serve(Server(delay_s=0.3)) as server:
        answered(place, server, {"attempts": 1, "concurrency": QUESTIONS, **keys})
    return len(server.bodies)


def asked_through_failures(place: Workplace, keys: dict[str, Any]) -> object:
    """Every question fails at first."""
    seen: set[str] = set()

    def script(request: web.Request, body: dict[str, Any]) -> web.Response | None:
        question = content(body["messages"])
        again = question in seen
        seen.add(question)
        return None if again else web.json_response({"error": {"message": "busy"}}, status=503)

    with serve(Server(script=script)) as server:
        answered(place, server, keys)
    return len(server.bodies)


def at_which_address(place: Workplace, keys: dict[str, Any]) -> object:
    with serve(Server()) as one, serve(Server()) as other, tempfile.TemporaryDirectory() as state:
        url = {"one": one, "other": other}[keys["url"]].url
        made(place, "evaluate:baseline:task", section(ASKED, {"url": url}), "gate=null", state=Path(state))
        return len(one.bodies), len(other.bodies)


def who_answered(place: Workplace, keys: dict[str, Any]) -> object:
    with tempfile.TemporaryDirectory() as state:
        artifact = made(place, "evaluate:baseline:task", section(keys), "gate=null", state=Path(state))
        return [(row["model_answered"], row["output"], row["simulated"]) for row in rows(artifact)]


def accepted(place: Workplace, keys: dict[str, Any]) -> object:
    return place.load(section(keys)).recipe.baseline is not None


def job(place: Workplace, keys: dict[str, Any]) -> object:
    """The job that the provider is given."""
    return tuning(place, keys)[1].jobs[0] | {"left": 0}


def training_cost(place: Workplace, keys: dict[str, Any]) -> object:
    return tuning(place, keys)[0]["cost_usd"]


def seconds_followed(place: Workplace, keys: dict[str, Any]) -> object:
    """Whether following two looks took two seconds or more."""
    started = time.monotonic()
    tuning(place, keys)
    return time.monotonic() - started >= 2


def tuning(place: Workplace, keys: dict[str, Any]) -> tuple[dict[str, Any], Desk]:
    provider = Desk()
    with serve(Server(), provider.routes()) as server, tempfile.TemporaryDirectory() as state:
        asked = section(ASKED, {"url": server.url, "fine_tune": {**TUNED, **keys["fine_tune"]}})
        return dict(made(place, "tune:managed", asked, "gate=null", state=Path(state)).facts), provider


def tuned_cost(place: Workplace, keys: dict[str, Any]) -> object:
    """What the tuned model's answers are said to cost."""
    with serve(Server(), Desk().routes()) as server, tempfile.TemporaryDirectory() as state:
        asked = section(ASKED, {"url": server.url, "fine_tune": {**TUNED, **keys["fine_tune"]}})
        return [row["cost_usd"] for row in rows(made(place, "evaluate:managed:task", asked, "gate=null", state=Path(state)))]


def verdict(place: Workplace, keys: dict[str, Any]) -> object:
    """All that the gate finds out about the same two tables, whose making is shared; without what only repeats the recipe."""
    recorded = section({"provider": "transcript", "transcript": "recorded.jsonl"})
    facts = dict(made(place, "gate", recorded, f"gate={json.dumps({'margin': 0.3, **keys})}").facts)
    facts["floors"] = [one["verdict"] for one in facts["floors"]]
    return {key: value for key, value in facts.items() if key not in ("margin", "alpha", "unscored", "text")}


def outlook(place: Workplace, keys: dict[str, Any]) -> object:
    recorded = section({"provider": "transcript", "transcript": "recorded.jsonl"})
    facts = made(place, "outlook", recorded, f"gate={json.dumps({'margin': 0.3, **keys})}").facts
    return {key: value for key, value in facts.items() if key != "discordance"}


def tune(key: str, one: Any, other: Any, observe: Observe = job) -> Effect:
    return Effect(observe, {"fine_tune": {key: one}}, {"fine_tune": {key: other}})


def priced(key: str, observe: Observe) -> Effect:
    """Of the input, a part is cached."""
    one, other = ({"input": 3, "cached_input": 2, "output": 4} | {key: value} for value in (2.5, 2.75))
    wrap = (lambda price: {"fine_tune": {"price": price}}) if observe is tuned_cost else (lambda price: {"price": price})
    return Effect(observe, wrap(one), wrap(other))


def floor(key: str) -> Effect:
    return Effect(verdict, {"floors": {key: 0.5}}, {"floors": {key: 1.0e-9}})


PLAYED = {"provider": "simulator", "model": "played-1"}
FILE = {"provider": "transcript", "transcript": "recorded.jsonl"}

EFFECTS: dict[str, Effect] = {
    "baseline.provider": Effect(who_answered, PLAYED, FILE),
    "baseline.model": Effect(sent, {"model": "closed-001"}, {"model": "closed-002"}),
    "baseline.url": Effect(at_which_address, {"url": "one"}, {"url": "other"}),
    "baseline.api_key_env": Effect(sent, {"api_key_env": "ONE_KEY"}, {"api_key_env": "OTHER_KEY"}),
    "baseline.transcript": Effect(who_answered, FILE, {**FILE, "transcript": "other.jsonl"}),
    "baseline.allow_floating": Effect(
        accepted,
        {"provider": "openai", "model": "gpt-4.1", "allow_floating": True},
        {"provider": "openai", "model": "gpt-4.1", "allow_floating": False},
    ),
    "baseline.budget_usd": Effect(cost, {"budget_usd": 1}, {"budget_usd": 1.0e-4}),
    **{f"baseline.price.{key}": priced(key, cost) for key in ("input", "cached_input", "output")},
    "baseline.system": Effect(sent, {"system": None}, {"system": "Say yes or no."}),
    "baseline.prompt": Effect(sent, {"prompt": None}, {"prompt": "Quick: {input}"}),
    "baseline.temperature": Effect(sent, {"temperature": 0}, {"temperature": 0.7}),
    "baseline.max_tokens": Effect(sent, {"max_tokens": None}, {"max_tokens": 5}),
    "baseline.logprobs": Effect(sent, {"logprobs": False}, {"logprobs": True}),
    "baseline.parameters": Effect(sent, {"parameters": {}}, {"parameters": {"reasoning_effort": "low"}}),
    "baseline.repeats": Effect(sent, {"repeats": 1}, {"repeats": 2}),
    "baseline.concurrency": Effect(most_in_flight, {"concurrency": 1}, {"concurrency": 6}),
    "baseline.timeout_s": Effect(asked_slowly, {"timeout_s": 30}, {"timeout_s": 0.1}),
    "baseline.attempts": Effect(asked_through_failures, {"attempts": 3}, {"attempts": 1}),
    "baseline.simulator.accuracy": Effect(
        who_answered, {**PLAYED, "simulator": {"accuracy": 0.5}}, {**PLAYED, "simulator": {"accuracy": 0.9}}
    ),
    "baseline.simulator.seed": Effect(
        who_answered, {**PLAYED, "simulator": {"accuracy": 0.5, "seed": 1}}, {**PLAYED, "simulator": {"accuracy": 0.5, "seed": 2}}
    ),
    "baseline.fine_tune.model": tune("model", "gpt-4.1-mini-2025-04-14", "gpt-4o-mini-2024-07-18"),
    "baseline.fine_tune.epochs": tune("epochs", 1, 2),
    "baseline.fine_tune.batch_size": tune("batch_size", None, 4),
    "baseline.fine_tune.learning_rate_multiplier": tune("learning_rate_multiplier", None, 0.5),
    "baseline.fine_tune.seed": tune("seed", 0, 1),
    "baseline.fine_tune.suffix": tune("suffix", "one", "two"),
    "baseline.fine_tune.training_price": tune("training_price", 5, 6, training_cost),
    **{f"baseline.fine_tune.price.{key}": priced(key, tuned_cost) for key in ("input", "cached_input", "output")},
    "baseline.fine_tune.budget_usd": tune("budget_usd", 20, 1.0e-4),
    "baseline.fine_tune.poll_s": tune("poll_s", 0.01, 1.0, seconds_followed),
    "gate.subject": Effect(verdict, {"subject": "candidate"}, {"subject": "routed"}),
    "gate.margin": Effect(verdict, {"margin": 0.3}, {"margin": 0.05}),
    "gate.alpha": Effect(verdict, {"alpha": 0.05}, {"alpha": 0.2}),
    "gate.slices": Effect(verdict, {"slices": []}, {"slices": ["topic=t1"]}),
    "gate.unscored": Effect(verdict, {"unscored": "fail"}, {"unscored": "exclude"}),
    "gate.sequential": Effect(verdict, {"sequential": False}, {"sequential": True}),
    "gate.discordance": Effect(outlook, {"discordance": 0.1}, {"discordance": 0.2}),
    **{f"gate.floors.{key}": floor(key) for key in ("score", "latency_p50_s", "latency_p95_s", "latency_p99_s", "size_mb")},
    "gate.floors.cost_per_1k_usd": Effect(verdict, {"floors": {}}, {"floors": {"cost_per_1k_usd": 1}}),
}


def test_no_key_is_forgotten() -> None:
    assert EFFECTS.keys() == {key for key in map(str, shape.keys()) if key.startswith(("baseline.", "gate."))}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Workplace]:
    place = judged(tmp_path_factory.mktemp("keys") / "desk", tiny_model)
    for name, answer in (("recorded.jsonl", "yes"), ("other.jsonl", "no")):
        lines: list[dict[str, Any]] = [
            {"prompt": f"{row['text']}\nAnswer: ", "output": answer, "model": "recorded-1", "simulated": False} for row in questions(200)
        ]
        lines = [{**line, "output": None, "status": "refused"} if number % 7 == 0 else line for number, line in enumerate(lines)]
        place.rows(name, lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        patch.setenv("ONE_KEY", "the-one-key-of-this-test")
        patch.setenv("OTHER_KEY", "the-other-key-of-this-test")
        patch.setattr("workbench.baselines.retry.FIRST_WAIT", 0.01)
        yield place


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_changes_the_result(desk: Workplace, key: str) -> None:
    effect = EFFECTS[key]
    one = effect.observe(desk, effect.one)
    try:
        other = effect.observe(desk, effect.other)
    except WorkbenchError as error:
        other = error
    assert one != other
