"""The whole way against the simulator: recording through its faults, and a managed fine-tune that is then asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from workbench.baselines.conversation import requests
from workbench.baselines.fine_tune import fine_tune
from workbench.baselines.record import record
from workbench.data.example import Example
from workbench.recipe.schema.baseline import Baseline, FineTune, Price
from workbench.simulator.server import running
from workbench.simulator.settings import Simulator

EXAMPLES = [Example(prompt=f"Headline: {n}", references=(str(n % 2),)) for n in range(150)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "any-key-will-do")


@pytest.fixture
def references(tmp_path: Path) -> Path:
    path = tmp_path / "references.jsonl"
    rows = [{"prompt": example.prompt, "reference": example.references[0]} for example in EXAMPLES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def simulator(references: Path, **changes: Any) -> Simulator:
    return Simulator.model_validate({"references": str(references), **changes})


def quiet(done: float, note: str = "") -> None:
    assert done >= 0


def test_recording_through_the_simulators_faults(tmp_path: Path, references: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.baselines.retry.FIRST_WAIT", 0.01)
    faults = [{"kind": kind, "share": 0.04} for kind in (500, 503, "reset", "malformed_json")]
    faults += [{"kind": 429, "share": 0.04, "retry_after_s": 0.0}, {"kind": "content_filter", "share": 0.05}]
    log = tmp_path / "log.jsonl"
    with running(simulator(references, faults=faults, log=str(log))) as url:
        baseline = Baseline(provider="openai", model="gpt-4.1-2025-04-14", url=url, api_key_env="TEST_KEY", logprobs=True, attempts=10)
        made = record(requests(EXAMPLES, baseline), baseline, tmp_path / "recorded", max_tokens=16, advance=quiet)
        asked = len(log.read_text().splitlines())
        again = record(requests(EXAMPLES, baseline), baseline, tmp_path / "recorded", max_tokens=16, advance=quiet)
        assert len(log.read_text().splitlines()) == asked > 150
    states = Counter(one.status for one in made.answers)
    assert states["answered"] > 120 and states["refused"] > 0 and states["failed"] == made.dead == 0
    right = sum(one.output == example.references[0] for one, example in zip(made.answers, EXAMPLES, strict=True))
    assert 0.75 < right / states["answered"] < 0.98
    answered = [one for one in made.answers if one.status == "answered"]
    assert all(one.simulated and one.cost_usd and one.logprob_mean is not None and one.margin_min is not None for one in answered)
    assert again.asked == 0 and [one.output for one in again.answers] == [one.output for one in made.answers]
    assert 0 < made.spent_usd + made.lost_usd <= baseline.budget_usd


def test_a_managed_fine_tune_is_a_candidate(tmp_path: Path, references: Path) -> None:
    settings = simulator(references, fine_tuning={"queued_s": 0.1, "running_s": 0.3, "accuracy": 1.0})
    tune = FineTune(poll_s=0.05, model="gpt-4.1-mini-2025-04-14", training_price=5.0, price=Price(input=0.8, output=3.2))
    with running(settings) as url:
        baseline = Baseline(provider="openai", model="gpt-4.1-2025-04-14", url=url, api_key_env="TEST_KEY", fine_tune=tune)
        tuned = fine_tune(EXAMPLES[:100], baseline, tmp_path / "tuned", quiet)
        assert tuned.simulated and tuned.model.startswith("ft:gpt-4.1-mini-2025-04-14:") and tuned.trained_tokens > 0
        assert tuned.cost_usd == pytest.approx(tuned.trained_tokens * 5.0 / 1e6)
        assert fine_tune(EXAMPLES[:100], baseline, tmp_path / "tuned", quiet).job == tuned.job
        asked = tuned.baseline(baseline)
        made = record(requests(EXAMPLES[100:], asked), asked, tmp_path / "recorded", max_tokens=16, advance=quiet)
    assert [one.output for one in made.answers] == [example.references[0] for example in EXAMPLES[100:]]
