"""A workplace with a closed baseline and a gate, and the servers that play the closed model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.baselines.standin import Server, completion, content, serve
from tests.support.workplace import RECIPE, Workplace, furnish, questions
from workbench.simulator.server import running
from workbench.simulator.settings import Simulator

#: How a simulator is asked that this recipe did not start itself; {url} is its address.
OWN = 'baseline={{provider: openai, model: "closed-001", url: "{url}", price: {{input: 2, output: 8}}}}'
SIMULATED = "baseline: {provider: simulator, model: simulated-1, simulator: {accuracy: 0.5}}\ngate: {margin: 0.3}\n"
ROWS = 200


def judged(folder: Path, model: Path, *parts: str, rows: int = ROWS) -> Workplace:
    """A recipe without training: the base, tiny and random, is the candidate."""
    place = furnish(folder, RECIPE, *(parts or (SIMULATED,)))
    place.rows("rows.jsonl", questions(rows))
    (place.folder / "model").symlink_to(model)
    return place


def sets(*overrides: str) -> list[str]:
    return [word for text in overrides for word in ("--set", text)]


def table(place: Workplace, name: str) -> list[dict[str, Any]]:
    """The rows of the one outcomes table of a candidate."""
    from workbench.evaluation import outcomes

    (path,) = place.state.glob(f"store/evaluate-{name}-task-*/outcomes.parquet")
    rows: list[dict[str, Any]] = outcomes.read(path).to_pylist()
    return rows


def transcript(place: Workplace) -> list[dict[str, Any]]:
    """The lines of the one transcript."""
    (path,) = place.state.glob("transcripts/*/transcript.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def simulator(place: Workplace, **settings: Any) -> Iterator[str]:
    """A simulator that knows every question of the workplace and writes `log.jsonl`; yields its URL."""
    rows = map(json.loads, (place.folder / "rows.jsonl").read_text().splitlines())
    place.rows("references.jsonl", [{"prompt": f"{row['text']}\nAnswer: ", "reference": row["label"]} for row in rows])
    known = {"references": str(place.folder / "references.jsonl"), "log": str(place.folder / "log.jsonl"), "model": "closed-001"}
    with running(Simulator.model_validate({"keyless": True, "accuracy": 0.5, **known, **settings})) as url:
        yield url


@contextmanager
def closed(*, right: bool = True, **settings: Any) -> Iterator[Server]:
    """A server that is no simulator and does not say it is one; it knows the even numbers, or always says the opposite."""

    def script(request: web.Request, body: dict[str, Any]) -> web.Response:
        number = int("".join(filter(str.isdigit, content(body["messages"]))))
        return web.json_response(completion(body, "yes" if (number % 2 == 0) == right else "no"))

    with serve(Server(**{"script": script, **settings})) as server:
        yield server
