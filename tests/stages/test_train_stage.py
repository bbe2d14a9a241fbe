"""Stage `train`: rows as the model sees them, refusals before anything is spent, and the artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stages.chains import plan, run
from tests.stages.conftest import TRAINED
from workbench.data.example import Example
from workbench.data.render import IGNORED, Renderer, Row
from workbench.errors import DataError, EnvironmentFault, TrainingError
from workbench.models.load import load_tokenizer
from workbench.recipe.schema import Task, Train
from workbench.stages import train as stage
from workbench.training.job import Job

MESSAGES = (
    {"role": "user", "content": "yes or no"},
    {"role": "assistant", "content": "maybe"},
    {"role": "user", "content": "0 or 1"},
)
CHAT = Example(MESSAGES, ("no",), where="rows.jsonl, row 1")


@pytest.fixture
def prepare(trained: Path, tmp_path: Path) -> Callable[..., Job]:
    def prepare(*overrides: str) -> Job:
        the_plan = plan(trained, *overrides)
        made = run(the_plan, trained / ".workbench", ["model", "data"])
        train = the_plan.loaded.recipe.train
        assert train is not None
        return stage.prepare(the_plan.loaded, train, made["model"].path, made["data"].path, tmp_path, origin="here")

    return prepare


def rows(job: Job) -> list[dict[str, list[int]]]:
    import pyarrow.parquet as pq

    return pq.read_table(job.train_rows).to_pylist()


def facts(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.workspace / "rows.json").read_text())
    return found


def renderer(trained: Path) -> Renderer:
    return Renderer(load_tokenizer(trained / "model"), Task(metric="exact_match"))


def test_loss_decides_which_tokens_teach(trained: Path) -> None:
    """completion: the last answer; assistant: every assistant turn; all: every token that has a token before it."""
    tokenizer = load_tokenizer(trained / "model")
    taught = {}
    for loss in ("completion", "assistant", "all"):
        (row,), _ = stage.rendered(renderer(trained), [CHAT], Train(loss=loss))
        taught[loss] = tokenizer.decode([token for token in row.labels if token != IGNORED])
        assert row.labels[-1] == tokenizer.eos_token_id
    assert taught["completion"] == "no<|im_end|>"
    assert taught["assistant"] == "maybe<|im_end|>no<|im_end|>"
    assert taught["all"].endswith("0 or 1<|im_end|>\n<|im_start|>assistant\nno<|im_end|>")


def test_loss_reaches_the_rows_on_disk(prepare: Callable[..., Job]) -> None:
    completion = facts(prepare())["supervised_tokens"]
    everything = prepare("train.loss=all")
    assert facts(everything)["supervised_tokens"] > completion
    assert all(row["labels"][1:] == row["input_ids"][1:] for row in rows(everything))


def test_overlong_rows(prepare: Callable[..., Job]) -> None:
    longest = facts(prepare())["length_max"]
    with pytest.raises(DataError, match=f"longest has {longest} tokens") as caught:
        prepare(f"train.max_length={longest - 1}")
    assert "train.overflow" in (caught.value.fix or "") and "rows.jsonl" in (caught.value.where or "")
    whole = rows(prepare())
    cut = prepare(f"train.max_length={longest - 1}", "train.overflow=truncate")
    assert len(rows(cut)) == len(whole) and facts(cut)["rows_overlong"] > 0
    assert max(len(row["input_ids"]) for row in rows(cut)) == longest - 1
    assert [row["labels"][-2:] for row in rows(cut)] == [row["labels"][-2:] for row in whole]  # answers are kept
    dropped = prepare(f"train.max_length={longest - 1}", "train.overflow=drop")
    assert facts(dropped)["rows"] == len(whole) - facts(cut)["rows_overlong"] == len(rows(dropped))


def test_when_every_row_is_too_long_nothing_is_trained(prepare: Callable[..., Job]) -> None:
    with pytest.raises(TrainingError, match="every training row is longer"):
        prepare("train.max_length=2", "train.overflow=drop")


def test_rows_that_teach_nothing_are_refused(trained: Path) -> None:
    good = Row(input_ids=(5, 6, 1), supervised=(False, True, True), prompt=1, where="rows.jsonl, row 1")
    silent = replace(good, supervised=(False, False, False), where="rows.jsonl, row 2")
    stage.check_supervision([good], renderer(trained))
    with pytest.raises(TrainingError, match="1 of 2 rows have no supervised token") as caught:
        stage.check_supervision([good, silent], renderer(trained))
    assert caught.value.where == "rows.jsonl, row 2"
    with pytest.raises(TrainingError, match="every training row"):
        stage.check_supervision([], renderer(trained))


def test_answers_that_never_end_are_refused(trained: Path) -> None:
    endless = Row(input_ids=(5, 6, 7), supervised=(False, True, True), prompt=1, where="rows.jsonl, row 1")
    with pytest.raises(TrainingError, match="never learn to stop"):
        stage.check_supervision([endless], renderer(trained))


def test_the_whole_stage(trained: Path) -> None:
    made = run(plan(trained, *TRAINED), trained / ".workbench", ["model", "data", "train"])["train"]
    assert {"adapter_model.safetensors", "adapter_config.json", "history.jsonl", "tokenizer.json"} <= {p.name for p in made.path.iterdir()}
    history = [json.loads(line) for line in (made.path / "history.jsonl").read_text().splitlines()]
    assert [event["step"] for event in history if "loss" in event] == [1, 2, 3, 4]
    assert [event["step"] for event in history if "eval_loss" in event] == [2, 4]
    assert all(0 <= event["eval_score"] <= 1 for event in history if "eval_loss" in event)
    assert made.facts["steps"] == made.facts["planned_steps"] == 4 and made.facts["processes"] == 1
    assert made.facts["loss"] == history[-2]["loss"] and made.facts["validation_loss"] == history[-1]["eval_loss"]
    assert made.facts["supervised_tokens"] > 0 and len(made.facts["rendering"]) == 64
    assert not (trained / ".workbench" / "work" / made.name).exists()


@pytest.mark.slow  # the parts: tests/training/test_trainer.py records it, test_launch.py raises what is recorded
def test_what_the_user_can_cure_comes_back_as_one_error(trained: Path) -> None:
    with pytest.raises(TrainingError, match="became nan at step") as caught:
        run(plan(trained, "train.learning_rate=1e30"), trained / ".workbench", ["model", "data", "train"])
    assert not isinstance(caught.value, EnvironmentFault)
    assert caught.value.exit_code == 2 and caught.value.fix
