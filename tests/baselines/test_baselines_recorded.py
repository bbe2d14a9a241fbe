"""A user's own transcript: matched by what was asked, refused where it was asked differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.baselines.conversation import Request, requests
from workbench.baselines.recorded import replay
from workbench.data.example import Example
from workbench.errors import EvaluationError, SourceError
from workbench.recipe.schema.baseline import Baseline, Price

EXAMPLES = [Example(prompt=f"Headline: {n}", references=("1",), metadata={"source": "news"}, where=f"row {n}") for n in range(3)]


def section(path: Path, **changes: Any) -> Baseline:
    return Baseline(provider="transcript", transcript=str(path), **changes)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(path: Path, **changes: Any) -> list[Request]:
    return requests(EXAMPLES, section(path, **changes))


def rows(**more: Any) -> list[dict[str, Any]]:
    return [{"prompt": example.prompt, "output": str(n), "model": "closed-1", **more} for n, example in enumerate(EXAMPLES)]


def test_answers_are_matched_by_prompt_messages_or_digest(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    one, two, three = rows(simulated=False, input_tokens=10, output_tokens=2)
    messages = {**two, "messages": [{"role": "user", "content": two.pop("prompt")}]}
    messages.pop("prompt", None)
    three["prompt_digest"] = asked(path)[2].prompt_digest
    three.pop("prompt")
    write(path, three, one, messages)
    made = replay(asked(path), section(path, price=Price(input=1.0, output=4.0)), path)
    assert [answer.output for answer in made] == ["0", "1", "2"]
    assert made[0].cost_usd == pytest.approx(18 / 1e6) and made[0].model_answered == "closed-1" and made[0].simulated is False
    assert all(answer.replayed for answer in made)


def test_an_unmarked_transcript_is_of_unknown_origin(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", *rows())
    one = replay(asked(path), section(path), path)[0]
    assert one.simulated is None and one.cost_usd is None


@pytest.mark.parametrize("changes", [{"prompt": "Is this sarcastic? {input}"}, {"system": "You judge headlines."}])
def test_another_prompt_is_refused_and_says_how_many_match(tmp_path: Path, changes: dict[str, str]) -> None:
    path = write(tmp_path / "answers.jsonl", *rows())
    with pytest.raises(EvaluationError, match=r"0 of 3 questions have an answer in the transcript: .*another prompt or template") as caught:
        replay(asked(path, **changes), section(path, **changes), path)
    assert EXAMPLES[0].id in caught.value.what


def test_missing_repeats_are_told_from_another_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", *rows())
    with pytest.raises(EvaluationError, match=r"3 of 6 questions .* not every repeat") as caught:
        replay(asked(path, repeats=2), section(path, repeats=2), path)
    assert caught.value.fix == "lower baseline.repeats"
    write(path, *rows(), *rows(repeat=1))
    assert [answer.repeat for answer in replay(asked(path, repeats=2), section(path, repeats=2), path)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": None}, "`output` is"),
        ({"output": 1}, "`output` is 1"),
        ({"latency_s": float("nan")}, "`latency_s` is NaN"),
        ({"input_tokens": -1}, "`input_tokens` is -1"),
        ({"repeat": True}, "`repeat` is true"),
        ({"status": "fine"}, "`status` is 'fine'"),
        ({"simulated": "no"}, "`simulated` is 'no'"),
        ({"model": "other"}, "is from 'other', and the recipe names `closed-1`"),
        ({"prompt": None}, "nothing says what was asked"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    first, *rest = rows()
    path = write(tmp_path / "answers.jsonl", *rest, {**first, **change})
    with pytest.raises(EvaluationError) as caught:
        replay(asked(path), section(path, model="closed-1"), path)
    assert said.casefold() in caught.value.what.casefold() and str(caught.value.where).endswith("answers.jsonl:3")


def test_two_different_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", *rows(), *rows())
    assert len(replay(asked(path), section(path), path)) == 3  # the same twice does no harm
    write(path, *rows(), {**rows()[0], "output": "another"})
    with pytest.raises(EvaluationError, match="a second, different answer"):
        replay(asked(path), section(path), path)


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(SourceError, match="cannot be read"):
        replay(asked(path), section(path), path)
    path.write_text("{half")
    with pytest.raises(EvaluationError, match="not a line of JSON"):
        replay(asked(path), section(path), path)
