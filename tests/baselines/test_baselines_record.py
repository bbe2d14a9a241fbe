"""Recording: answered once, within the budget, through faults and kills, without a trace of the key."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.baselines.standin import Server, completion, content, serve
from workbench.baselines.budget import BudgetExceeded
from workbench.baselines.conversation import Request
from workbench.baselines.faults import Halt
from workbench.baselines.record import Recording, record
from workbench.errors import EnvironmentFault, EvaluationError
from workbench.recipe.schema.baseline import Baseline, Price

KEY = "sk-testing-0123456789abcdefghij"
ROOM = 16


def question(number: int) -> Request:
    return Request(f"example-{number}", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {number}"}))


def section(server: Server, **changes: Any) -> Baseline:
    keys: dict[str, Any] = {
        "provider": "openai",
        "model": "closed-2026-01-01",
        "url": server.url,
        "api_key_env": "TEST_KEY",
        "price": Price(input=1.0, cached_input=0.5, output=4.0),
    }
    return Baseline(**keys | changes)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr("workbench.baselines.retry.FIRST_WAIT", 0.01)


def run(server: Server, folder: Path, count: int = 20, **changes: Any) -> Recording:
    notes: list[tuple[float, str]] = []
    questions = [question(number) for number in range(count)]
    made = record(questions, section(server, **changes), folder, max_tokens=ROOM, advance=lambda done, note="": notes.append((done, note)))
    assert notes[-1][0] == count and notes[-1][1].startswith("$")
    assert [one.example_id for one in made.answers] == [one.example_id for one in questions]
    return made


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]


def test_every_answer_has_what_the_outcomes_table_needs(tmp_path: Path) -> None:
    with serve(Server(delay_s=0.02)) as server:
        made = run(server, tmp_path)
        assert 1 < server.most_in_flight <= 8
    first = made.answers[0]
    assert first.status == "answered" and first.output == "answer to question 0" and first.error is None
    assert (first.input_tokens, first.cached_tokens, first.output_tokens) == (8, 2, 6)
    assert first.cost_usd == pytest.approx((6 * 1.0 + 2 * 0.5 + 6 * 4.0) / 1e6)
    assert first.latency_s is not None and 0 < first.latency_s < 10 and first.ttft_s is None
    assert (first.model_requested, first.model_answered, first.fingerprint) == ("closed-2026-01-01", "closed-2026-01-01", "fp_1")
    assert first.simulated is False and first.finish_reason == "stop"
    assert made.spent_usd == pytest.approx(20 * (first.cost_usd or 0), rel=0.1) and made.versions == {("closed-2026-01-01", "fp_1"): 20}
    assert server.bodies[0]["max_tokens"] == ROOM and server.bodies[0]["temperature"] == 0 and "logprobs" not in server.bodies[0]


def test_a_second_run_replays_and_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    with serve(Server()) as server:
        first = run(server, tmp_path, 10)
        again = run(server, tmp_path, 12)
        assert Counter(text for text, _ in server.log) == Counter(f"question {number}" for number in range(12))
        assert [one.output for one in again.answers[:10]] == [one.output for one in first.answers]
        assert (first.asked, again.asked) == (10, 2) and [one.replayed for one in again.answers] == [True] * 10 + [False] * 2
        run(server, tmp_path, 12, temperature=0.7)
        assert len(server.log) == 24  # other sampling, other answers
    with serve(Server()) as elsewhere:
        run(elsewhere, tmp_path, 12, api_key_env=None)
        assert not elsewhere.log  # neither the address nor the key is part of the question


def test_faults_are_retried_until_every_example_is_answered_once(tmp_path: Path) -> None:
    with serve(Server(share=0.2, seed=3)) as server:
        made = run(server, tmp_path, 150)
        assert {fault for _, fault in server.log} == {"answer", "429", "500", "503", "reset", "truncated", "malformed", "empty"}
    assert [one.output for one in made.answers] == [f"answer to question {number}" for number in range(150)]
    assert Counter(text for text, fault in server.log if fault == "answer") == Counter(f"question {number}" for number in range(150))
    assert server.billed <= made.spent_usd + made.lost_usd + 150 * 1e-6  # the stand-in gives no rebate for cached tokens
    assert not (tmp_path / "dead_letters.jsonl").exists()


def test_what_is_never_answered_is_a_dead_letter_that_the_next_run_asks_again(tmp_path: Path) -> None:
    broken = {"question 3", "question 7"}

    def script(request: web.Request, body: dict[str, Any]) -> web.Response | None:
        return web.Response(status=503, text="no") if content(body["messages"]) in broken else None

    with serve(Server(script=script)) as server:
        made = run(server, tmp_path, attempts=3)
        assert made.dead == 2 and made.asked == 18
        assert [one.status for one in made.answers].count("failed") == 2
        assert "no answer after 3 attempts; the last one: HTTP 503" in str(made.answers[3].error)
        letters = [json.loads(line) for line in (tmp_path / "dead_letters.jsonl").read_text().splitlines()]
        assert {letter["example_id"] for letter in letters} == {"example-3", "example-7"}
        assert Counter(server.log)["question 3", "503"] == 3
        broken.clear()
        again = run(server, tmp_path)
        assert again.asked == 2 and again.dead == 0 and not (tmp_path / "dead_letters.jsonl").exists()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "invalid_api_key", "does not accept the key"),
        (403, None, "does not accept the key"),
        (404, "model_not_found", "there is no model `closed-2026-01-01`"),
        (429, "insufficient_quota", "no money or quota left"),
        (400, "unsupported_value", "rejects the request"),
    ],
)
def test_what_no_retry_can_cure_stops_at_once_and_keeps_everything(tmp_path: Path, status: int, code: str | None, said: str) -> None:
    def script(request: web.Request, body: dict[str, Any]) -> web.Response | None:
        return web.json_response({"error": {"message": f"no: {KEY}", "code": code}}, status=status)

    with serve(Server()) as server:
        run(server, tmp_path / "some", 3)
    with serve(Server(script=script)) as server:
        with pytest.raises(Halt, match=said) as caught:
            run(server, tmp_path / "none", 50, concurrency=2)
        assert len(server.log) <= 2 and KEY not in str(caught.value)
    if status == 401:
        with serve(Server(script=script)) as server, pytest.raises(Halt):
            run(server, tmp_path / "some", 5)
        assert sum(line["kind"] == "answer" for line in lines(tmp_path / "some")) == 3


def test_refusals_and_long_prompts_are_states_of_their_example(tmp_path: Path) -> None:
    def script(request: web.Request, body: dict[str, Any]) -> web.Response | None:
        match content(body["messages"]):
            case "question 1":
                return web.json_response({"error": {"message": "policy", "code": "content_filter"}}, status=400)
            case "question 2":
                message = "This model's maximum context length is 8192 tokens"
                return web.json_response({"error": {"message": message, "code": "context_length_exceeded"}}, status=400)
            case "question 3":
                return web.json_response(completion(body, None, choices=[{"message": {"refusal": "I cannot"}, "finish_reason": "stop"}]))
            case "question 4":
                choice = {"message": {"content": "half an ans"}, "finish_reason": "content_filter"}
                return web.json_response(completion(body, None, choices=[choice]))
        return None

    with serve(Server(script=script)) as server:
        made = run(server, tmp_path, 6)
        assert [one.status for one in made.answers] == ["answered", "refused", "failed", "refused", "refused", "answered"]
        assert "does not fit into the model's context" in str(made.answers[2].error) and made.answers[2].cost_usd == 0
        assert made.answers[3].error == "refused: I cannot" and made.answers[3].output is None and made.answers[3].cost_usd
        again = run(server, tmp_path, 6)
        assert len(server.log) == 6 and [one.status for one in again.answers] == [one.status for one in made.answers]


def test_the_budget_holds_and_says_how_much_is_missing(tmp_path: Path) -> None:
    with serve(Server(share=0.2, price=(1.0, 4.0))) as server:
        with pytest.raises(BudgetExceeded) as caught:
            run(server, tmp_path, 200, budget_usd=0.004)
        assert 0 < server.billed <= 0.004
        kept = {line["key"] for line in lines(tmp_path) if line["kind"] == "answer"}
        assert 10 < len(kept) < 200
        assert f"{200 - len(kept)} of 200 questions are open" in caught.value.what and caught.value.where == "baseline.budget_usd"
        assert caught.value.fix and f"{len(kept)} that are done" in caught.value.fix
        advised = float(caught.value.fix.partition("(to ")[2].split()[0])
        with pytest.raises(BudgetExceeded):  # what is spent stays spent in the next run
            run(server, tmp_path, 200, budget_usd=0.004)
        assert server.billed <= 0.004
        made = run(server, tmp_path, 200, budget_usd=advised * 2)  # twice: faults take their worst case
        assert (
            made.spent_usd + made.lost_usd <= advised * 2 and Counter(q for q, f in server.log if f == "answer").most_common(1)[0][1] == 1
        )


def test_an_endpoint_that_counts_no_tokens_is_charged_the_worst_case(tmp_path: Path) -> None:
    with serve(Server(script=lambda request, body: web.json_response({**completion(body, "yes"), "usage": None}))) as server:
        made = run(server, tmp_path, 2)
    assert made.answers[0].input_tokens is None and (made.answers[0].cost_usd or 0) > 16 * 4 / 1e6


def test_a_wait_that_the_endpoint_asks_for_is_kept(tmp_path: Path) -> None:
    times: list[float] = []

    def script(request: web.Request, body: dict[str, Any]) -> web.Response | None:
        times.append(time.monotonic())
        return web.Response(status=429, headers={"Retry-After": "1"}) if len(times) == 1 else None

    with serve(Server(script=script)) as server:
        run(server, tmp_path, 3, concurrency=1)
    assert times[1] - times[0] >= 1.0


def test_a_slow_endpoint_is_a_lost_request(tmp_path: Path) -> None:
    with serve(Server(delay_s=0.5)) as server:
        made = run(server, tmp_path, 1, timeout_s=0.1, attempts=2)
    assert made.dead == 1 and made.lost_usd > 0 and "no answer within 0.1 s" in str(made.answers[0].error)


def test_an_unreachable_endpoint_costs_nothing(tmp_path: Path) -> None:
    made = run(Server(url="http://127.0.0.1:9/v1"), tmp_path, 1, attempts=2)
    assert made.dead == 1 and made.lost_usd == 0 and "no connection" in str(made.answers[0].error)


def test_log_probabilities_are_kept(tmp_path: Path) -> None:
    tokens = [{"logprob": -0.1, "top_logprobs": [{"logprob": -0.1}, {"logprob": -2.4}]}, {"logprob": -0.5, "top_logprobs": []}]
    choice = {"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    with serve(Server(extra={"choices": [choice]})) as server:
        one = run(server, tmp_path, 1, logprobs=True).answers[0]
        assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 2
    assert (one.logprob_mean, one.logprob_min, one.margin_min) == (pytest.approx(-0.3), -0.5, pytest.approx(2.3))


@pytest.mark.parametrize("way", ["body", "header"])
def test_a_simulator_is_recognised(tmp_path: Path, way: str) -> None:
    def script(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response(completion(body, "yes"), headers={"x-simulated": "true"})

    with serve(Server(extra={"simulated": True}) if way == "body" else Server(script=script)) as server:
        assert run(server, tmp_path, 1).answers[0].simulated is True


def test_parameters_go_along_and_tell_answers_apart(tmp_path: Path) -> None:
    with serve(Server()) as server:
        run(server, tmp_path, 1, parameters={"reasoning_effort": "low"}, temperature=None)
        run(server, tmp_path, 1, parameters={"reasoning_effort": "high"}, temperature=None)
        assert [body["reasoning_effort"] for body in server.bodies] == ["low", "high"] and "temperature" not in server.bodies[0]


def test_a_missing_key_is_one_clear_error_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with serve(Server()) as server:
        with pytest.raises(EvaluationError, match="TEST_KEY is not set"):
            run(server, tmp_path)
        assert not server.log and not list(tmp_path.iterdir())


def test_the_key_goes_to_the_endpoint_and_nowhere_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def script(request: web.Request, body: dict[str, Any]) -> web.Response | None:
        match content(body["messages"]):
            case "question 1":
                return web.json_response(completion(body, f"your key is {KEY}"))
            case "question 2":
                return web.json_response({"error": {"message": f"wrong: Bearer {KEY}", "code": "content_filter"}}, status=400)
            case "question 3":
                return web.Response(status=503, text=f"Authorization: Bearer {KEY}")
        return None

    with serve(Server(script=script)) as server:
        made = run(server, tmp_path, 5, attempts=2)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "your key is ***" in written and made.answers[1].output == "your key is ***"
    for text in (written, repr(made), *capfd.readouterr()):
        assert KEY not in text and "Bearer sk" not in text
    assert "authorization" not in "".join(path.read_text().lower() for path in tmp_path.glob("transcript*")).replace(
        "authorization: bearer ***", ""
    )


def test_a_key_for_the_provider_is_not_sent_to_another_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(Server()) as server:
        run(server, tmp_path, 1, api_key_env=None)
        assert "Authorization" not in server.headers[0]


def test_two_processes_exclude_each_other(tmp_path: Path) -> None:
    import fcntl

    with serve(Server()) as server:
        run(server, tmp_path, 1)
        with (tmp_path / "transcript.jsonl").open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(EnvironmentFault, match="another process is recording"):
                run(server, tmp_path, 1)
        run(server, tmp_path, 1)


def test_a_torn_last_line_is_cut_off_and_its_question_asked_again(tmp_path: Path) -> None:
    with serve(Server()) as server:
        run(server, tmp_path, 3, concurrency=1)
        path = tmp_path / "transcript.jsonl"
        path.write_bytes(path.read_bytes()[:-40])
        made = run(server, tmp_path, 3)
        assert made.asked == 1 and made.lost_usd > 0  # the answer that was torn may have been charged
        assert len(server.log) == 4 and all(lines(tmp_path))
        path.write_bytes(b"{torn}\n" + path.read_bytes())
        with pytest.raises(EvaluationError, match="damaged") as caught:
            run(server, tmp_path, 3)
        assert str(caught.value.where).endswith("transcript.jsonl:1")


def test_the_same_example_twice_is_refused(tmp_path: Path) -> None:
    with serve(Server()) as server, pytest.raises(EvaluationError, match="asked twice"):
        record([question(1), question(1)], section(server), tmp_path, max_tokens=ROOM, advance=lambda done, note="": None)


CHILD = """
import sys
from pathlib import Path
import workbench.baselines.record as recording
from tests.baselines.test_baselines_record import ROOM, question, section
from tests.baselines.standin import Server
import workbench.baselines.retry
workbench.baselines.retry.FIRST_WAIT = 0.01
url, folder, count, budget = sys.argv[1:]
made = recording.record([question(n) for n in range(int(count))], section(Server(url=url), budget_usd=float(budget)), Path(folder),
                        max_tokens=ROOM, advance=lambda done, note="": None)
print(len({one.example_id for one in made.answers if one.status == "answered"}), made.spent_usd, made.lost_usd)
"""


@pytest.mark.parametrize(("count", "kills"), [(100, 3), pytest.param(2000, 20, marks=pytest.mark.slow)])
def test_kill_and_restart_ask_nothing_twice_that_was_recorded(tmp_path: Path, count: int, kills: int) -> None:
    """From the server's own log: after each kill -9, no question is asked whose answer was on the disk."""
    rng, budget = random.Random(count), 1.0
    transcript = tmp_path / "transcript.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with serve(Server(share=0.2, delay_s=0.02)) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(tmp_path), str(count), str(budget)]
        done = 0
        for _ in range(kills):
            begun = len(server.log)
            done = recorded(transcript)[1]
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            until = done + rng.randint(1, max(1, (count - done) // (kills + 1) * 2))
            while process.poll() is None and recorded(transcript)[1] < until:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.05)  # what was in flight reaches the log
            before = recorded(transcript)[0]
            check = len(server.log)
            server_knows = {text for text, _ in server.log[begun:check]}
            assert done == 0 or server_knows.isdisjoint(first_answers(transcript, done))
        assert 0 < len(before) < count, "the kills came too late to prove anything"
        begun = len(server.log)
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        assert not {text for text, _ in server.log[begun:]} & before
        answered, spent, lost = int(said[0]), float(said[1]), float(said[2])
        assert answered == count
        assert server.billed <= spent + lost + count * 1e-6 and spent + lost <= budget
        in_flight = 8 * kills
        assert Counter(fault for _, fault in server.log)["answer"] <= count + in_flight
        assert len(first_answers(transcript, count)) == count


def recorded(transcript: Path) -> tuple[set[str], int]:
    """The questions whose answers are on the disk, and how many."""
    if not transcript.exists():
        return set(), 0
    data = transcript.read_bytes()
    found = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines() if b'"kind": "answer"' in line]
    return {content(line["messages"]) for line in found}, len(found)


def first_answers(transcript: Path, count: int) -> set[str]:
    """The questions of the first answers on the disk."""
    found = [json.loads(line) for line in transcript.read_bytes().splitlines() if b'"kind": "answer"' in line]
    return {content(line["messages"]) for line in found[:count]}
