"""A managed fine-tune: one upload and one job, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.baselines.standin import Server, serve
from workbench.baselines.budget import BudgetExceeded
from workbench.baselines.faults import Halt
from workbench.baselines.fine_tune import export, fine_tune
from workbench.data.example import Example
from workbench.errors import EvaluationError
from workbench.recipe.schema.baseline import Baseline, FineTune, Price

KEY = "sk-testing-0123456789abcdefghij"
MODEL = "gpt-4.1-mini-2025-04-14"
EXAMPLES = [Example(prompt=f"Headline: {n}", references=(str(n % 2),)) for n in range(12)]


class Desk:
    """The provider's side of files and jobs.

    Attributes:
        polls: looks at the job until it ends.
        drop: break the connection of the first upload and of the first job, after doing what was asked.
    """

    def __init__(self, *, polls: int = 2, ending: dict[str, Any] | None = None, drop: bool = False) -> None:
        self.polls, self.drop = polls, drop
        self.ending = ending or {"status": "succeeded", "fine_tuned_model": f"ft:{MODEL}:org:workbench:1", "trained_tokens": 900}
        self.files: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.uploads: list[bytes] = []

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        sent = form["file"]
        assert isinstance(sent, web.FileField) and form["purpose"] == "fine-tune"
        data = sent.file.read()
        self.uploads.append(data)
        self.files.append({"id": f"file-{len(self.files)}", "filename": sent.filename, "bytes": len(data), "status": "processed"})
        return self.give(request, self.files[-1], len(self.files) == 1)

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        method = body["method"]["supervised"]["hyperparameters"]
        self.jobs.append(
            {**body, "id": f"job-{len(self.jobs)}", "status": "running", "hyperparameters": method, "created_at": 100, "left": self.polls}
        )
        return self.give(request, self.jobs[-1], len(self.jobs) == 1)

    def give(self, request: web.Request, body: dict[str, Any], first: bool) -> web.Response:
        if self.drop and first:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(body)

    async def list_files(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self.files})

    async def list_jobs(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self.jobs})

    async def look(self, request: web.Request) -> web.Response:
        job = next(job for job in self.jobs if job["id"] == request.match_info["job"])
        job["left"] -= 1
        if job["left"] < 0:
            job |= {**self.ending, "finished_at": 160}
        return web.json_response(job)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/files", self.upload),
            web.get("/v1/files", self.list_files),
            web.post("/v1/fine_tuning/jobs", self.create),
            web.get("/v1/fine_tuning/jobs", self.list_jobs),
            web.get("/v1/fine_tuning/jobs/{job}", self.look),
        ]


def section(url: str, **changes: Any) -> Baseline:
    tune: dict[str, Any] = {"poll_s": 0.01, "training_price": 5.0, "price": Price(input=0.8, output=3.2)}
    return Baseline(provider="openai", model=MODEL, url=url, api_key_env="TEST_KEY", fine_tune=FineTune(**tune | changes))


def advance(done: float, note: str = "") -> None:
    assert 0 <= done < 1 and note


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


@contextmanager
def desk(**settings: Any) -> Iterator[tuple[Desk, str]]:
    made = Desk(**settings)
    with serve(Server(), made.routes()) as server:
        yield made, server.url


def test_the_job_its_cost_and_its_model(tmp_path: Path) -> None:
    with desk() as (provider, url):
        tuned = fine_tune(EXAMPLES, section(url, epochs=2, batch_size=4, learning_rate_multiplier=0.5, seed=7), tmp_path, advance)
    assert (tuned.model, tuned.base, tuned.trained_tokens, tuned.seconds) == (f"ft:{MODEL}:org:workbench:1", MODEL, 900, 60.0)
    assert tuned.cost_usd == pytest.approx(900 * 5 / 1e6) and tuned.simulated is False
    job = provider.jobs[0]
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert (job["seed"], job["suffix"], job["model"]) == (7, "workbench", MODEL)
    rows = [json.loads(line) for line in provider.uploads[0].splitlines()]
    assert rows[1] == {"messages": [{"role": "user", "content": "Headline: 1"}, {"role": "assistant", "content": "1"}]} and len(rows) == 12
    asked = tuned.baseline(section(url))
    assert (asked.model, asked.price, asked.fine_tune) == (tuned.model, Price(input=0.8, output=3.2), None)
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_the_export_has_the_instructions_and_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    rows = [Example(prompt=f"q{n}", references=("[]",), tools=(tool,), answer=call) for n in range(10)]
    export(rows, section("http://x").model_copy(update={"system": "Call f.", "prompt": "Do: {input}"}), tmp_path / "t.jsonl")
    first = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert first == {"messages": [{"role": "system", "content": "Call f."}, {"role": "user", "content": "Do: q0"}, call], "tools": [tool]}


def test_a_broken_connection_makes_no_second_file_and_no_second_job(tmp_path: Path) -> None:
    with desk(drop=True) as (provider, url):
        fine_tune(EXAMPLES, section(url), tmp_path, advance)
        assert len(provider.files) == len(provider.jobs) == 1
        fine_tune(EXAMPLES, section(url), tmp_path, advance)
        assert len(provider.jobs) == 1
        (tmp_path / "fine_tune.json").unlink()  # killed before it was written
        fine_tune(EXAMPLES, section(url), tmp_path, advance)
        assert len(provider.files) == len(provider.jobs) == 1
        fine_tune(EXAMPLES[:11], section(url), tmp_path, advance)  # other rows, another job
        assert len(provider.files) == len(provider.jobs) == 2


def test_killed_while_it_follows_it_goes_on_with_the_same_job(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.baselines.test_baselines_fine_tune import *\n"
        "print(fine_tune(EXAMPLES, section(sys.argv[1]), Path(sys.argv[2]), advance).model)"
    )
    with desk(polls=10**9) as (provider, url):
        command = [sys.executable, "-c", code, url, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(command, env=environment)
        until = time.monotonic() + 60
        while not (provider.jobs and provider.jobs[0]["left"] < 10**9 - 3) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        provider.jobs[0]["left"] = 1
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said.strip() == f"ft:{MODEL}:org:workbench:1" and len(provider.files) == len(provider.jobs) == 1


def test_a_job_that_failed_says_why_and_can_be_started_anew(tmp_path: Path) -> None:
    with desk(ending={"status": "failed", "error": {"message": "row 3 is no good"}}) as (provider, url):
        with pytest.raises(EvaluationError, match="row 3 is no good"):
            fine_tune(EXAMPLES, section(url), tmp_path, advance)
        (tmp_path / "fine_tune.json").unlink()
        with pytest.raises(EvaluationError):
            fine_tune(EXAMPLES, section(url), tmp_path, advance)
        assert len(provider.jobs) == 2 and len(provider.files) == 1


def test_a_job_that_could_cost_too_much_is_not_started(tmp_path: Path) -> None:
    with desk() as (provider, url):
        with pytest.raises(BudgetExceeded, match="for 3 epochs may cost"):
            fine_tune(EXAMPLES, section(url, budget_usd=0.001), tmp_path, advance)
        assert not provider.files
    with pytest.raises(EvaluationError, match="too few"):
        fine_tune(EXAMPLES[:3], section("http://127.0.0.1:9"), tmp_path, advance)


def test_a_wrong_key_stops(tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"bad key {KEY}", "code": "invalid_api_key"}}, status=401)

    with serve(Server(), [web.get("/v1/files", refuse)]) as server, pytest.raises(Halt, match="does not accept the key") as caught:
        fine_tune(EXAMPLES, section(server.url), tmp_path, advance)
    assert KEY not in str(caught.value)
