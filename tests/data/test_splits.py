from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from workbench.data.checks import warnings
from workbench.data.example import Example
from workbench.data.splits import SplitSet, contamination, distinct, divide
from workbench.errors import DataError
from workbench.recipe.schema import SPLITS, Limits, SplitShares, Task


def examples(prompts: Sequence[object], answer: str = "a", file: str = "f.jsonl") -> list[Example]:
    return [Example(prompt=str(p), references=(answer,), where=f"{file}, row {n}") for n, p in enumerate(prompts, 1)]


def keys(splits: SplitSet) -> dict[str, set[str]]:
    return {split: {e.content_key for e in splits[split]} for split in SPLITS}


def cut(rows: list[Example], *, seed: int = 0, limits: Limits | None = None, **shares: float) -> SplitSet:
    return divide(rows, {}, SplitShares(seed=seed, **shares), limits or Limits(), needed=())


PROMPTS = st.sets(st.integers(), min_size=1, max_size=60).map(lambda numbers: sorted(map(str, numbers)))


@given(prompts=PROMPTS, seed=st.integers(0, 9), repeats=st.integers(0, 3))
def test_disjoint_and_complete(prompts: list[str], seed: int, repeats: int) -> None:
    splits = cut(examples(prompts + prompts[:repeats]), seed=seed)
    found = keys(splits)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == len(prompts)
    assert sum(splits.report.sizes.values()) == splits.report.rows["source"] - splits.report.duplicates


@given(prompts=PROMPTS, order=st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(prompts: list[str], order: random.Random) -> None:
    shuffled = list(prompts)
    order.shuffle(shuffled)
    one, two = cut(examples(prompts)), cut(examples(shuffled))
    assert [[e.prompt for e in one[split]] for split in SPLITS] == [[e.prompt for e in two[split]] for split in SPLITS]


@given(prompts=PROMPTS, more=PROMPTS)
def test_further_rows_move_no_row(prompts: list[str], more: list[str]) -> None:
    before, after = keys(cut(examples(prompts))), keys(cut(examples(prompts + more)))
    assert all(before[split] <= after[split] for split in SPLITS)


def test_shares_and_seed() -> None:
    rows = examples(range(4000))
    shares = {"train": 0.5, "validation": 0.2, "calibration": 0.0, "test": 0.3}
    first, second = keys(cut(rows, seed=1, **shares)), keys(cut(rows, seed=2, **shares))
    for split, share in shares.items():
        assert binomtest(len(first[split]), 4000, share).pvalue > 1e-6 if share else not first[split]
    # Independent seeds agree on about half of train, no more.
    assert binomtest(len(first["train"] & second["train"]), 4000, 0.25).pvalue > 1e-6


@settings(max_examples=50)
@given(prompts=PROMPTS, low=st.integers(1, 30), high=st.integers(1, 30))
def test_a_limit_only_adds(prompts: list[str], low: int, high: int) -> None:
    low, high = sorted((low, high))
    small, large = (keys(cut(examples(prompts), limits=Limits(train=limit, test=limit))) for limit in (low, high))
    unlimited = keys(cut(examples(prompts)))
    for split in ("train", "test"):
        assert small[split] <= large[split] <= unlimited[split]
        assert len(small[split]) == min(low, len(unlimited[split]))
    assert small["validation"] == unlimited["validation"]


def test_duplicates_and_conflicts() -> None:
    rows = [*examples(["What  now?"], "yes"), *examples(["what now?"], "no", "g.jsonl"), *examples(["WHAT NOW?"], "yes"), *examples(["x"])]
    found = distinct(rows)
    assert [e.references for e in found.examples] == [("yes",), ("a",)]
    assert (found.duplicates, found.conflicts) == (2, 1)
    assert found.conflict_examples == ("'What  now?': 'yes' (f.jsonl, row 1) and 'no' (g.jsonl, row 1)",)


def test_a_held_out_file_gives_its_share_to_train() -> None:
    rows = examples(range(300))
    without, with_file = cut(rows), divide(rows, {"test": examples(range(900, 950))}, SplitShares(), Limits(test=20))
    assert {e.prompt for e in with_file.train} == {e.prompt for e in without.train} | {e.prompt for e in without.test}
    assert (with_file.validation, with_file.calibration) == (without.validation, without.calibration)
    assert len(with_file.test) == 20
    assert {int(str(e.prompt)) for e in with_file.test} <= set(range(900, 950))
    assert with_file.report.rows == {"source": 300, "test": 50}


def test_contamination_is_refused_with_count_and_examples() -> None:
    with pytest.raises(DataError) as caught:
        divide(examples(range(50), file="train.jsonl"), {"test": examples(range(43, 60), file="test.jsonl")}, SplitShares(), Limits())
    message = str(caught.value)
    assert "7 prompts stand in both data.source and data.held_out.test" in message
    assert message.count("train.jsonl, row") == 5
    assert "'43' (train.jsonl, row 44; test.jsonl, row 1)" in message
    assert "and 2 more" in message


def test_contamination_of_any_pair() -> None:
    contamination({"train": examples("ab"), "guard": examples("cd")})
    with pytest.raises(DataError, match="1 prompt stands in both train and guard"):
        contamination({"train": examples("ab"), "test": examples("xy"), "guard": examples("Bq")})


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused_where_it_is_needed(split: str) -> None:
    shares = {"train": 0.4, "validation": 0.3, "calibration": 0.0, "test": 0.3}
    shares["calibration"], shares[split] = shares[split], 0.0
    with pytest.raises(DataError, match=f"the split '{split}' is empty: its share is 0 of 200 rows"):
        divide(examples(range(200)), {}, SplitShares(**shares), Limits())
    assert divide(examples(range(200)), {}, SplitShares(**shares), Limits(), needed=()).report.sizes[split] == 0


def test_written_and_read_again(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    chat = Example(
        prompt=({"role": "user", "content": "é\u2028"},),
        references=("b",),
        metadata={"x": [1, None]},
        where="f, row 1",
        tools=(tool,),
        answer={"role": "assistant", "tool_calls": []},
        key="0123456789abcdef",
    )
    splits = cut([*examples(range(40)), chat])
    splits.write(tmp_path)
    assert SplitSet.read(tmp_path) == splits
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calibration.jsonl", "report.json", "test.jsonl", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip


def test_labels_are_counted_where_they_are_few() -> None:
    rows = examples(range(100), "0") + examples(range(100, 200), "1")
    labels = cut(rows).report.labels
    assert labels is not None
    assert sum(labels[split]["0"] for split in SPLITS) == 100
    free = [Example(prompt=str(n), references=(f"answer {n}",)) for n in range(300)]
    assert cut(free).report.labels is None


def test_warnings() -> None:
    rows = [*examples(range(50), "0"), *examples([0], "1")]
    task = Task(metric="label", labels=["0", "1"])
    found = warnings(cut(rows), task)
    assert [text for text in found if "1 prompt" in text and "different answers" in text]
    assert [text for text in found if "1 of 2 labels never occur in train: 1" in text]
    balanced = examples(range(50), "0") + examples(range(50, 100), "1")
    assert warnings(cut(balanced), task) == []
    assert "every answer in train is the same" in warnings(cut(examples(range(50))), Task(metric="exact_match"))[0]
