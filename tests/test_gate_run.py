"""`workbench run` with a baseline and a gate: what it says, what it asks, what it refuses. Over HTTP, with the real simulator."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.baselines.standin import completion
from tests.support.judged import OWN, closed, judged, sets, simulator, table, transcript
from tests.support.workplace import NOBODY, Said, Workplace

KEY = "closed-key-0123456789abcdef"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is away, no key lies in the environment, and nobody waits long."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("workbench.baselines.retry.FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """Where the base has answered already, so that only the closed side is at work."""
    made = judged(tmp_path_factory.mktemp("judged") / "desk", tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        said = made("run", "desk.yaml", "--json")
    assert said.code == 0, said.err
    made.write("stdout.json", said.out)
    made.write("stderr.txt", said.err)
    return made


def run(place: Workplace, *overrides: str, code: int | None = 0) -> Said:
    said = place("run", "desk.yaml", "--json", *sets(*overrides))
    assert "Traceback" not in said.err
    assert code is None or said.code == code, said.err
    return said


def refused(place: Workplace, *overrides: str, code: int = 2, verb: str = "run") -> str:
    said = place(verb, "desk.yaml", *sets(*overrides))
    assert said.code == code, said.err
    assert "Traceback" not in said.err
    assert "\n  fix: " in said.err
    return said.err


def made(said: Said) -> set[str]:
    """The stages that were not there already."""
    return set(re.findall(r"^(\S+): started$", said.err, re.MULTILINE))


# What it says ------------------------------------------------------------------------------------------------------------


def test_the_verdict_is_in_the_report_and_marked(place: Workplace) -> None:
    report = json.loads((place.folder / "stdout.json").read_text())
    gate = report["gate"]
    assert (gate["verdict"], gate["simulated"], gate["margin"], gate["alpha"], gate["n"]) == ("PASS", True, 0.3, 0.05, 41)
    assert -0.3 < gate["ci_low"] < gate["difference"] < gate["ci_high"]
    assert (gate["subject"], gate["look"]) == ("base", 1)
    base, baseline = report["candidates"]
    assert (baseline["name"], baseline["kind"], baseline["simulated"], baseline["n"]) == ("baseline", "baseline", True, 41)
    assert gate["difference"] == pytest.approx(base["score"] - baseline["score"])
    assert baseline["versions"] == [{"model": "simulated-1", "fingerprint": baseline["versions"][0]["fingerprint"], "answers": 41}]
    costs = [row["cost_usd"] for row in table(place, "baseline")]
    assert baseline["cost_per_1k_usd"] == pytest.approx(1000 * sum(costs) / 41)
    assert baseline["price"].startswith("SIMULATED")

    said = place("show")
    assert "closed, SIMULATED" in said.out
    assert "baseline: SIMULATED simulated-1 (41 answers), $" in said.out
    assert "\nSIMULATED PASS: base is as good as baseline" in said.out
    err = (place.folder / "stderr.txt").read_text()
    assert "SIMULATED: simulated-1 is played at an accuracy of 0.5" in err
    assert err.index("gate on 41 examples at alpha 0.03") < err.index("evaluate:base:task: started"), "said before anything is spent"
    assert "SIMULATED PASS" in err


def test_the_gate_recomputes_from_the_outcomes(place: Workplace) -> None:
    """The verb on the run's own tables says what the run said."""
    report = json.loads((place.folder / "stdout.json").read_text())["gate"]
    ours, theirs = (next(place.state.glob(f"store/evaluate-{name}-task-*/outcomes.parquet")) for name in ("base", "baseline"))
    said = place("gate", "--candidate", str(ours), "--baseline", str(theirs), "--margin", "0.3", "--alpha", str(report["level"]), "--json")
    assert said.code == 0
    same = ("verdict", "difference", "ci_low", "ci_high", "n", "simulated", "candidate_score", "baseline_score", "method")
    assert {key: said.json[key] for key in same} == {key: report[key] for key in same}


@pytest.mark.parametrize(("accuracy", "margin", "verdict", "code"), [(1.0, 0.2, "FAIL", 3), (0.5, 0.1, "INCONCLUSIVE", 4)])
def test_exit_codes(place: Workplace, accuracy: float, margin: float, verdict: str, code: int) -> None:
    said = run(place, f"baseline.simulator.accuracy={accuracy}", f"gate.margin={margin}", code=code)
    assert said.json["gate"]["verdict"] == verdict
    assert said.json["gate"]["look"] == 1, "the same answers are the same look"
    if verdict == "INCONCLUSIVE":
        assert said.json["gate"]["needed"] > 0
        assert "more examples would let it pass" in said.json["gate"]["text"]


def test_a_second_run_asks_nothing(place: Workplace) -> None:
    before = {path: path.read_bytes() for path in place.state.glob("transcripts/*/*")}
    looks = (place.state / "looks.jsonl").read_bytes()
    said = run(place)
    assert made(said) == set()
    first = json.loads((place.folder / "stdout.json").read_text())
    assert said.json["gate"] == first["gate"]
    assert said.json["candidates"] == first["candidates"]
    assert {path: path.read_bytes() for path in before} == before
    assert (place.state / "looks.jsonl").read_bytes() == looks


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("gate.margin=0.31", {"outlook", "gate"}),
        ("gate.discordance=0.2", {"outlook"}),
        ("gate.floors.score=0.01", {"gate"}),
        ("baseline.system=Be brief.", {"evaluate:baseline:task", "gate"}),
        ("baseline.parameters={top_p: 0.5}", {"evaluate:baseline:task", "gate"}),
        ("baseline.model=simulated-2", {"evaluate:baseline:task", "gate"}),
        ("baseline.concurrency=2", set()),
        ("baseline.budget_usd=4", set()),
    ],
)
def test_a_change_makes_again_what_stands_on_it(place: Workplace, override: str, stages: set[str]) -> None:
    assert made(run(place, override, code=None)) == stages


def test_a_changed_prompt_makes_both_sides_answer_again(tmp_path: Path, tiny_model: Path) -> None:
    desk = judged(tmp_path / "desk", tiny_model)
    run(desk)
    asked = len(transcript(desk))
    again = run(desk, "task.prompt={text} Yes or no? ", code=None)
    assert made(again) == {"data", "outlook", "evaluate:base:task", "evaluate:baseline:task", "gate"}
    assert again.json["gate"]["look"] in (1, 2)
    both = [json.loads(line) for path in desk.state.glob("transcripts/*/*.jsonl") for line in path.read_text().splitlines()]
    assert len(both) == 2 * asked, "and the answers to the old one are kept"


# What it asks ------------------------------------------------------------------------------------------------------------


def own(url: str, **more: Any) -> str:
    text = OWN.format(url=url)
    return text[:-1] + "".join(f", {key}: {json.dumps(value)}" for key, value in more.items()) + "}"


def test_another_run_of_the_same_questions_asks_the_server_nothing(place: Workplace) -> None:
    log = place.folder / "log.jsonl"
    with simulator(place) as url:
        first = run(place, own(url))
        assert len(log.read_text().splitlines()) == 41
        run(place, own(url), "gate.margin=0.25", code=None)
        run(place, own(url, repeats=2), code=None)
        asked = [json.loads(line)["prompt"] for line in log.read_text().splitlines()]
    assert set(Counter(asked).values()) == {2}, "two repeats, of which one was there"
    assert first.json["candidates"][1]["simulated"] is True
    with simulator(place) as elsewhere:  # another address of the same model, as a tunnel has one
        run(place, own(elsewhere))
        assert len(log.read_text().splitlines()) == 82


def test_a_missing_key_is_said_before_anything_is_computed(tmp_path: Path, tiny_model: Path) -> None:
    desk = judged(tmp_path / "desk", tiny_model)
    pinned = "baseline={provider: openai, model: gpt-4.1-2025-04-14}"
    text = refused(desk, pinned)
    assert "error: baseline.api_key_env: the environment variable OPENAI_API_KEY is not set" in text
    assert not (desk.state / "store").exists()
    text = refused(desk, "baseline={provider: openai, model: gpt-9-2031-01-01, url: 'http://127.0.0.1:9'}")
    assert "the price book has no price for `gpt-9-2031-01-01`" in text
    text = refused(desk, "baseline={provider: openai, model: gpt-9-2031-01-01, price: {input: 1, output: 1}, fine_tune: {}, "
                   "url: 'http://127.0.0.1:9'}")  # fmt: skip
    assert "nobody says what a fine-tune of `gpt-9-2031-01-01` costs" in text
    assert not (desk.state / "store").exists()


def test_a_wrong_key_stops_at_once(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHT_KEY", KEY)
    monkeypatch.setenv("WRONG_KEY", "wrong-key-0123456789")
    with simulator(place, keyless=False, api_key_env="RIGHT_KEY", model="closed-002") as url:
        text = refused(place, own(url, api_key_env="WRONG_KEY", concurrency=1), "baseline.model=closed-002")
        assert "the endpoint does not accept the key (HTTP 401" in text
        assert "wrong-key" not in text
        assert run(place, own(url, api_key_env="RIGHT_KEY"), "baseline.model=closed-002", code=None).json["gate"]["n"] == 41
    kept = b"".join(path.read_bytes() for path in place.state.rglob("*") if path.is_file())
    assert KEY.encode() not in kept
    assert b"wrong-key-0123456789" not in kept


def test_a_floating_alias_is_refused_where_it_stands(place: Workplace) -> None:
    alias = (place.folder / "desk.yaml").read_text().replace("provider: simulator, model: simulated-1", "provider: openai, model: gpt-4.1")
    place.write("alias.yaml", alias)
    said = place("check", "alias.yaml")
    assert said.code == 2
    line = next(number for number, text in enumerate(alias.splitlines(), 1) if "gpt-4.1" in text)
    column = alias.splitlines()[line - 1].index("model: gpt-4.1") + 1
    assert f"error: alias.yaml:{line}:{column}: " in said.err, said.err
    assert "`gpt-4.1` is not a pinned version" in said.err
    assert "allow_floating: true" in said.err


def test_a_floating_alias_that_is_allowed_is_reported_as_who_answered(place: Workplace) -> None:
    with simulator(place, model="closed-2031-01-01", aliases=["closed"]) as url:
        row = run(place, own(url, allow_floating=True), "baseline.model=closed", code=None).json["candidates"][1]
    assert (row["model"], row["versions"][0]["model"]) == ("closed", "closed-2031-01-01")
    assert {one["model_answered"] for one in transcript_of(place, "closed")} == {"closed-2031-01-01"}


def transcript_of(place: Workplace, model: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for path in place.state.glob("transcripts/*/transcript.jsonl") for line in path.read_text().splitlines())
    return [line for line in lines if line["kind"] == "answer" and line["model_requested"] == model]


def test_a_recorded_transcript_is_a_baseline_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    place = judged(tmp_path / "desk", tiny_model)
    first = run(place).json
    (recorded,) = place.state.glob("transcripts/simulator-*/transcript.jsonl")
    place.write("transcript.jsonl", recorded.read_bytes())
    replayed = "baseline={provider: transcript, transcript: transcript.jsonl}"
    said = run(place, replayed)
    row = said.json["candidates"][1]
    assert (row["score"], row["simulated"], row["model"]) == (first["candidates"][1]["score"], True, None)
    assert row["versions"] == first["candidates"][1]["versions"]
    assert row["cost_per_1k_usd"] == pytest.approx(first["candidates"][1]["cost_per_1k_usd"])
    assert said.json["gate"]["ci_low"] == first["gate"]["ci_low"]
    assert "baseline: SIMULATED simulated-1 (41 answers)" in place("show").out

    text = refused(place, replayed, "baseline.prompt=Quick: {input}")
    assert "0 of 41 questions have an answer in the transcript: they were recorded with another prompt or template" in text
    assert "prompt digest" in text
    assert "this answer is from" in refused(place, replayed, "baseline.model=simulated-7")

    unmarked = [json.loads(line) for line in recorded.read_text().splitlines()]
    place.rows("unmarked.jsonl", [{key: value for key, value in line.items() if key != "simulated"} for line in unmarked])
    gate = run(place, "baseline={provider: transcript, transcript: unmarked.jsonl}").json["gate"]
    assert gate["simulated"] is None
    assert "it is not known whether these outcomes are simulated" in gate["text"]


def test_dead_letters_are_asked_again_and_nothing_else(place: Workplace) -> None:
    down = {7, 8}
    server: Any
    with closed() as server:
        answered = server.script

        def failing(request: Any, body: dict[str, Any]) -> Any:
            from aiohttp import web

            response = answered(request, body)
            return web.json_response({"error": {"message": "no"}}, status=500) if len(server.bodies) in down else response

        server.script = failing
        text = refused(place, own(server.url, attempts=1, concurrency=1), "baseline.model=closed-004", code=1)
        assert "2 of 41 questions got no answer after 1 attempts each" in text
        (letters,) = place.state.glob("transcripts/own-*/dead_letters.jsonl")
        assert str(letters) in text
        dead = [json.loads(line) for line in letters.read_text().splitlines()]
        assert len(dead) == 2
        assert "HTTP 500" in dead[0]["reason"]
        down.clear()
        server.bodies.clear()
        said = run(place, own(server.url, attempts=1, concurrency=1), "baseline.model=closed-004", code=None)
        assert len(server.bodies) == 2
    assert not letters.exists()
    assert said.json["candidates"][1]["n"] == 41
    assert said.json["gate"]["simulated"] is False


def test_a_budget_that_is_too_small_keeps_what_it_bought(place: Workplace) -> None:
    with closed() as server:
        text = refused(place, own(server.url, budget_usd=0.001, concurrency=2), "baseline.model=closed-003")
        bought = len(server.bodies)
        assert 0 < bought < 41
        assert "error: baseline.budget_usd: the budget is used up ($0.000" in text
        assert f"{41 - bought} of 41 questions are open" in text
        (needed,) = re.findall(r"raise baseline\.budget_usd \(to ([\d.]+) at most\)", text)
        said = run(place, own(server.url, budget_usd=float(needed), concurrency=2), "baseline.model=closed-003", code=None)
        assert len(server.bodies) == 41, "what it had bought was not bought again"
    assert said.json["candidates"][1]["spent_usd"] < float(needed)


def test_an_answer_without_a_score(tmp_path: Path, tiny_model: Path) -> None:
    """A refusal counts as right for the baseline, or is left out, or nothing is judged: never silently."""
    desk = judged(tmp_path / "desk", tiny_model)
    with closed() as server:
        answered = server.script

        def refusing(request: Any, body: dict[str, Any]) -> Any:
            from aiohttp import web

            if len(server.bodies) % 10 == 0:
                answer = completion(body, None)
                answer["choices"][0]["finish_reason"] = "content_filter"
                return web.json_response(answer)
            assert answered is not None
            return answered(request, body)

        server.script = refusing
        asked = own(server.url, concurrency=1)
        fail = run(desk, asked, code=None).json["gate"]
        assert (fail["n"], fail["baseline_score"], fail["unscored"]["statuses"]) == (41, 1.0, {"refused": 4})
        assert "without a score: 0 of the candidate's rows, 4 of the baseline's (4 refused); they count against" in fail["text"]
        exclude = run(desk, asked, "gate.unscored=exclude", code=None).json["gate"]
        assert (exclude["n"], exclude["unscored"]["excluded"]) == (37, 4)
        looks = (desk.state / "looks.jsonl").read_bytes()
        assert "4 of the baseline's have no score" in refused(desk, asked, "gate.unscored=refuse")
        assert (desk.state / "looks.jsonl").read_bytes() == looks
        assert len(server.bodies) == 41


# What it refuses ---------------------------------------------------------------------------------------------------------


def test_an_impossible_gate_is_refused_before_anything_is_spent(tmp_path: Path, tiny_model: Path) -> None:
    desk = judged(tmp_path / "desk", tiny_model)
    text = refused(desk, "gate.margin=0.03")
    assert re.search(r"error: --set gate\.margin=0\.03: the gate cannot pass: 41 examples are too few .*; it takes (\d+)", text), text
    assert "fix: raise data.limit.test" in text
    names = {path.name.rpartition("-")[0] for path in (desk.state / "store").iterdir()}
    assert names == {"model", "data"}
    assert not (desk.state / "transcripts").exists()

    # At the first look the level is 6 / pi^2 of alpha, so what would just do at alpha itself cannot pass.
    refused(desk, "gate.margin=0.07")
    assert "slice topic=t" in refused(desk, "gate.slices=[topic]", "gate.margin=0.15")
    assert "no example has the field 'source' in its metadata" in refused(desk, "gate.slices=[source]")
    refused(desk, "gate.sequential=true", "gate.margin=0.1")
    text = refused(desk, "gate.floors.latency_p99_s=9")
    assert "41 examples cannot show that latency_p99_s keeps its limit, however fast it is; it takes 348" in text
    assert not (desk.state / "transcripts").exists()


def test_the_number_that_it_takes_suffices(tmp_path: Path, tiny_model: Path) -> None:
    desk = judged(tmp_path / "desk", tiny_model)
    text = refused(desk, "gate.margin=0.05")
    (least,) = re.findall(r"it takes (\d+)", text)
    shares = ["data.split.train=0", "data.split.validation=0", "data.split.calibration=0", "data.split.test=1"]
    assert int(least) < 200
    assert "cannot pass" in refused(desk, "gate.margin=0.05", *shares, f"data.limit.test={int(least) - 1}")
    assert desk("run", "desk.yaml", "--until", "outlook", *sets("gate.margin=0.05", *shares, f"data.limit.test={least}")).code == 0


def test_what_a_gate_cannot_be_asked(place: Workplace) -> None:
    text = refused(place, "evaluate.split=validation", verb="check")
    assert "the gate would judge on the validation rows" in text
    assert re.search(r"desk\.yaml:\d+:\d+: ", text)
    text = refused(place, "baseline=null", verb="check")
    assert re.search(r"desk\.yaml:\d+:\d+: `gate` needs a `baseline`", text), text
    assert "needs a router" in refused(place, "gate.subject=routed", verb="check")
    text = refused(place, "baseline.parameters=0", verb="check")
    assert "`baseline.parameters` must be a section of keys and values, but is the number 0" in text
    assert "reasoning_effort" in text


# What reaches the verdict ------------------------------------------------------------------------------------------------


def test_floors_and_slices_reach_the_verdict(tmp_path: Path, tiny_model: Path) -> None:
    guard = "{name: near, source: near.jsonl, format: prompt_completion, columns: {prompt: text, completion: label}, floor: 0.99}"
    desk = judged(tmp_path / "desk", tiny_model)
    easy = ["baseline.simulator.accuracy=0.0", "gate.margin=0.35"]
    limits = ["latency_p50_s", "size_mb"]
    kept = run(desk, *easy, *(f"gate.floors.{name}=1000" for name in limits), "gate.slices=[topic]").json["gate"]
    assert [(one["name"], one["verdict"]) for one in kept["floors"]] == [(name, "PASS") for name in limits]
    assert [one["name"] for one in kept["slices"]] == ["topic=t0", "topic=t1", "topic=t2"]
    assert sum(one["n"] for one in kept["slices"]) == 41
    size = next(one for one in kept["floors"] if one["name"] == "size_mb")["value"]
    assert size == pytest.approx(sum(file.stat().st_size for file in tiny_model.glob("*.safetensors")) / 1e6)
    for name in limits:
        gate = run(desk, *easy, f"gate.floors.{name}=1.0e-9", code=3).json["gate"]
        assert (gate["comparison"], gate["verdict"]) == ("PASS", "FAIL")
        assert f"misses what is required: {name}" in gate["text"]
    costly = run(desk, *easy, "gate.floors.cost_per_1k_usd=1", code=4).json["gate"]
    assert "no row has a cost" in costly["text"]
    guarded = run(desk, *easy, f"evaluate.guards=[{guard}]", code=3).json["gate"]
    assert [(one["name"], one["verdict"]) for one in guarded["floors"]] == [("guard near", "FAIL")]
    assert run(desk, *easy, f"evaluate.guards=[{guard}]", "evaluate.guards.0.floor=null").json["gate"]["floors"] == []


def test_the_selected_candidate_is_judged(quantized: Workplace) -> None:
    closed_side = ["baseline={provider: simulator, model: simulated-1, simulator: {accuracy: 0.0}}", "gate={margin: 0.4}", "name=judged"]
    report = run(quantized, *closed_side, code=None).json
    sizes = {row["name"]: row["size_bytes"] / 1e6 for row in report["candidates"] if row["size_bytes"]}
    picked = report["selection"]["picked"]
    assert report["gate"]["subject"] == report["gate"]["candidate"] == picked
    assert report["gate"]["difference"] == pytest.approx(next(row["score"] for row in report["candidates"] if row["name"] == picked))
    smallest = min((name for name in sizes if name != "base"), key=lambda name: sizes[name])
    if smallest != picked:
        again = run(quantized, *closed_side, f"select.at_most.size_mb={sizes[smallest]}", code=None).json
        assert again["gate"]["subject"] == smallest
        assert again["gate"]["look"] == 2, "another candidate is another look"
    text = refused(quantized, *closed_side, "select.at_most.size_mb=1.0e-6")
    assert "there is nothing to judge: no candidate keeps the limits" in text
