"""Which texts a rounding is fitted to: spread over answers and lengths, mixed with general text, and never what will be measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.data.example import Example
from workbench.errors import DataError
from workbench.quantization.calibration import FEWEST_PER_ANSWER, general_texts, refuse_overlap, refuse_too_few, settings_of, spread
from workbench.recipe.schema import Calibration


def example(number: int, answer: str = "yes") -> Example:
    return Example(f"is the number {number} even or odd?", (answer,), where=f"rows.jsonl, row {number}")


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[Example], list[int]]:
    answers = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
    lengths = draw(st.lists(st.integers(1, 50), min_size=len(answers), max_size=len(answers)))
    return [example(number, answer) for number, answer in enumerate(answers)], lengths


@given(rows(), st.integers(1, 70), st.integers(0, 3))
def test_spread(given_rows: tuple[list[Example], list[int]], wanted: int, seed: int) -> None:
    examples, lengths = given_rows
    taken = spread(examples, lengths, wanted, seed)
    assert len(taken) == len(set(taken)) == min(wanted, len(examples))
    assert taken == sorted(taken) == spread(examples, lengths, wanted, seed)
    there = Counter(one.references[0] for one in examples)
    if len(there) * FEWEST_PER_ANSWER <= len(taken):
        got = Counter(examples[number].references[0] for number in taken)
        most = max(got.values())
        # As even as can be: whoever has less than the others but for one, has nothing left.
        assert all(got[answer] >= most - 1 or got[answer] == there[answer] for answer in there)


@given(st.permutations(range(1, 61)), st.integers(2, 20), st.integers(0, 5))
def test_short_and_long_rows_are_taken_alike(lengths: list[int], wanted: int, seed: int) -> None:
    taken = spread([example(number) for number in range(60)], lengths, wanted, seed)
    found = sorted(lengths[number] for number in taken)
    for place, length in enumerate(found):  # one of each stretch of the lengths
        assert 60 * place // wanted < length <= 60 * (place + 1) // wanted


def test_another_seed_takes_other_rows() -> None:
    """Also where no two rows are of one length."""
    examples = [example(number) for number in range(60)]
    seen = {tuple(spread(examples, range(60), 10, seed)) for seed in range(5)}  # type: ignore[arg-type]
    assert len(seen) == 5


def test_free_texts_are_no_classes() -> None:
    """Answers that never recur cannot be balanced; the lengths can."""
    examples = [example(number, f"answer {number}") for number in range(40)]
    assert len(spread(examples, list(range(40)), 10, 0)) == 10


def test_general_texts(tmp_path: Path) -> None:
    texts = [f"text {number} with \u2028 inside" for number in range(9)]
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("\n\n".join(texts) + "\n")
    lines.write_text("".join(json.dumps({"text": text, "other": 1}, ensure_ascii=False) + "\n" for text in texts))
    taken = general_texts(plain, 4, 0)
    assert taken == general_texts(lines, 4, 0)
    assert len(set(taken)) == 4 and set(taken) < set(texts)
    assert {tuple(general_texts(plain, 4, seed)) for seed in range(4)} != {tuple(taken)}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"one\ntwo\n", "2 general texts, and 3 are wanted"),
        ("a.txt", b"\xff\xfe", "no general text can be read"),
        ("a.csv", b"one\ntwo\nthree\n", "by such a name"),
        ("a.jsonl", b'{"text": "one"}\n\n{"words": "two"}\n', "a.jsonl, line 3: is no text: KeyError"),
        ("a.jsonl", b'{"text": "one"}\n["two"]\n', "a.jsonl, line 2: is no text: TypeError"),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "a.jsonl, line 2: is no text: JSONDecodeError"),
        ("a.jsonl", b'{"text": "one"}\n{"text": 2}\n', "a.jsonl, line 2: is empty or no text"),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl, line 1: is empty or no text"),
    ],
)
def test_general_texts_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        general_texts(tmp_path / name, 3, 0)
    assert words in str(caught.value) and caught.value.fix


def test_general_texts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        general_texts(tmp_path / "none.txt", 3, 0)


def test_overlap_is_counted_and_its_first_place_named() -> None:
    held_out = [example(number) for number in range(5)]
    texts = ["nothing of the sort", "Is  the number 3 even\nor odd?", "and then: is the number 1 EVEN or odd? who knows"]
    refuse_overlap(texts[:1], held_out, "desk.yaml:3:7")
    with pytest.raises(DataError) as caught:
        refuse_overlap(texts, held_out, "desk.yaml:3:7")
    assert str(caught.value).startswith(
        "desk.yaml:3:7: 2 calibration texts hold prompts of held-out examples (the first: rows.jsonl, row 3)"
    )


def test_a_short_prompt_overlaps_only_as_a_whole_text() -> None:
    """Inside another text, a word or two mean nothing."""
    held_out = [Example("a b", ("yes",), where="row 1")]
    refuse_overlap(["say a b and c"], held_out, "here")
    with pytest.raises(DataError):
        refuse_overlap(["A  b"], held_out, "here")


def test_what_the_user_says_in_a_conversation_overlaps() -> None:
    messages = ({"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Which river is the longest?"})
    held_out = [Example(messages, ("the Nile",), where="chat.jsonl, row 7")]
    refuse_overlap(["You are a helpful assistant."], held_out, "here")
    with pytest.raises(DataError, match=r"chat.jsonl, row 7"):
        refuse_overlap(["Quiz: which river is the longest? The Nile."], held_out, "here")


def test_too_few_tokens() -> None:
    refuse_too_few(64, 64, "here")
    with pytest.raises(DataError, match="have 63 tokens, and a layer of the model has 64 inputs"):
        refuse_too_few(63, 64, "here")


def test_shares() -> None:
    assert settings_of(Calibration(rows=40)) == (40, 0)
    assert settings_of(Calibration(rows=40, general="a.txt")) == (30, 10)
    assert settings_of(Calibration(rows=40, general="a.txt", general_share=0.5)) == (20, 20)
