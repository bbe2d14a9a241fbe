from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.simulator.playing import LABELS, label, references
from workbench.errors import DataError
from workbench.evaluation import outcomes
from workbench.simulator.answers import Answer, Answers
from workbench.simulator.references import last_user, normalised, read

COUNT = 2500


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(references(tmp_path_factory.mktemp("references"), COUNT))


def answers(file: Path, seed: int = 0, *, spread: float = 4.0, noise: float = 0.3) -> Answers:
    return Answers(read(file, seed), seed=seed, spread=spread, noise=noise, fallback="?")


def draw(model: Answers, number: int, *, version: str = "v1", accuracy: float = 0.88, temperature: float = 0.0, **more: int) -> Answer:
    seed, count = more.get("seed"), more.get("count", 1)
    return model.draw(f"question {number}", version=version, accuracy=accuracy, temperature=temperature, seed=seed, count=count)[0]


def share_right(model: Answers, **how: object) -> float:
    return sum(draw(model, i, **how).text == label(i) for i in range(COUNT)) / COUNT  # type: ignore[arg-type]


# Four standard errors of a binomial share: a false alarm once in 16,000 runs, were the seeds not fixed.
@pytest.mark.parametrize("accuracy", [0.3, 0.88, 0.99])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_stated_accuracy_is_hit_at_any_temperature(file: Path, accuracy: float, temperature: float) -> None:
    found = share_right(answers(file), accuracy=accuracy, temperature=temperature)
    assert abs(found - accuracy) < 4 * math.sqrt(accuracy * (1 - accuracy) / COUNT)


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_never_and_always_right(file: Path, accuracy: float) -> None:
    assert share_right(answers(file), accuracy=accuracy) == accuracy


@pytest.mark.parametrize("spread", [0.0, 4.0, 40.0])
def test_the_mean_probability_is_calibrated_exactly(file: Path, spread: float) -> None:
    model = answers(file, spread=spread)
    wrong = [model.wrong_probability(f"question {i}", 0.88) for i in range(COUNT)]
    assert math.isclose(sum(wrong) / COUNT, 0.12, abs_tol=1e-8)
    assert (max(wrong) - min(wrong) < 1e-9) == (spread == 0)


def test_hard_prompts_are_answered_wrongly_more_often(tmp_path: Path) -> None:
    path = tmp_path / "graded.jsonl"
    rows = [{"prompt": f"question {i}", "reference": label(i), "difficulty": float(i % 2)} for i in range(COUNT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = answers(path)
    wrong = Counter(i % 2 for i in range(COUNT) if draw(model, i).text != label(i))
    expected = [model.wrong_probability("question 0", 0.88), model.wrong_probability("question 1", 0.88)]
    assert expected[1] > 5 * expected[0]
    for hard in (0, 1):
        error = 4 * math.sqrt(expected[hard] * (1 - expected[hard]) * COUNT / 2)
        assert abs(wrong[hard] - expected[hard] * COUNT / 2) < error


def test_temperature_0_repeats_itself_and_1_does_not(file: Path) -> None:
    model = answers(file)
    cold = [[draw(model, i).text for _ in range(3)] for i in range(200)]
    assert all(len(set(texts)) == 1 for texts in cold)
    warm = [[draw(model, i, temperature=1.0).text for _ in range(8)] for i in range(200)]
    assert sum(len(set(texts)) > 1 for texts in warm) > 20
    again = answers(file)
    assert [draw(again, i, temperature=1.0).text for i in range(200)] == [texts[0] for texts in warm]


def test_a_seed_in_the_request_fixes_the_answer(file: Path) -> None:
    model = answers(file, noise=1.0)
    same = {tuple(draw(model, i, temperature=1.0, seed=5).text for i in range(100)) for _ in range(3)}
    assert len(same) == 1
    assert same != {tuple(draw(model, i, temperature=1.0, seed=6).text for i in range(100))}


def test_another_version_errs_elsewhere_and_another_seed_too(file: Path) -> None:
    model = answers(file)
    first, second = ({i for i in range(COUNT) if draw(model, i, version=name).text != label(i)} for name in ("v1", "v2"))
    other = answers(file, 1)
    third = {i for i in range(COUNT) if draw(other, i).text != label(i)}
    by_chance = len(first) * len(second) / COUNT
    assert first != second != third
    assert len(first & second) > by_chance + 4 * math.sqrt(by_chance)  # the hard prompts are hard for both
    assert abs(len(first & third) - len(first) * len(third) / COUNT) < 4 * math.sqrt(by_chance)  # another seed: other hard prompts


def test_options_are_the_distribution_of_temperature_1(file: Path) -> None:
    model = answers(file, noise=0.8)
    first = draw(model, 0)
    assert math.isclose(sum(share for _, share in first.options), 1)
    assert {text for text, _ in first.options} == set(LABELS)
    draws = 6000
    seen = Counter(draw(model, 0, temperature=1.0).text for _ in range(draws))
    for text, share in first.options:
        assert abs(seen[text] - share * draws) < 4 * math.sqrt(share * (1 - share) * draws) + 1


def test_wrong_answers_are_those_given_or_other_references(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text('prompt,reference,wrong\none,1,"[""uno"", ""1""]"\ntwo,2,\nthree,3,\n')
    known = read(path, 0)
    assert known["one"].wrong == ("uno",)
    assert set(known["two"].wrong) == {"1", "3"}


def test_prompts_are_compared_normalised(file: Path) -> None:
    model = answers(file)
    assert draw(model, 1).known
    (spaced,) = model.draw("  question \n 1 ", version="v1", accuracy=1.0, temperature=0, seed=None, count=1)
    assert spaced.text == label(1)
    assert normalised("e\u0301") == normalised("é")
    (unknown,) = model.draw("something else", version="v1", accuracy=1.0, temperature=0, seed=None, count=1)
    assert (unknown.text, unknown.known) == ("?", False)


def test_an_outcomes_table_is_a_file_of_references(tmp_path: Path) -> None:
    chat = json.dumps([{"role": "system", "content": "s"}, {"role": "user", "content": "is it?"}])
    rows = [
        {"candidate": name, "example_id": key, "score": 1.0, "prompt": prompt, "reference": reference, "repeat": repeat}
        for name in ("a", "b")
        for repeat in (0, 1)
        for key, prompt, reference in [("1", chat, "yes"), ("2", "or not?", "no")]
    ]
    outcomes.write(outcomes.from_rows(rows), tmp_path / "table.parquet")
    known = read(tmp_path / "table.parquet", 0)
    assert {prompt: one.right for prompt, one in known.items()} == {"is it?": "yes", "or not?": "no"}


def test_lists_of_a_parquet_file(tmp_path: Path) -> None:
    columns = {"prompt": ["a", "b"], "reference": ["x", "y"], "wrong": [["z", "w"], None], "difficulty": [0.5, float("nan")]}
    pq.write_table(pa.table(columns), tmp_path / "file.parquet")
    known = read(tmp_path / "file.parquet", 0)
    assert (known["a"].wrong, known["a"].difficulty) == (("z", "w"), 0.5)
    assert known["b"].wrong == ("x",) and 0 < known["b"].difficulty < 1


def test_the_question_is_the_last_user_message() -> None:
    parts = [{"type": "text", "text": "is "}, {"type": "text", "text": "it?"}]
    assert last_user([{"role": "user", "content": "no"}, {"role": "user", "content": parts}, {"role": "tool", "content": "x"}]) == "is it?"
    assert last_user([{"role": "system", "content": "only this"}]) == "only this"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no row"),
        ('{"prompt": "a"}', "no field 'reference'"),
        ('{"prompt": null, "reference": "x"}', "is empty"),
        ('{"prompt": "a", "reference": "x", "difficulty": 1.5}', "'difficulty' is 1.5"),
        ('{"prompt": "a", "reference": "x", "difficulty": true}', "'difficulty' is True"),
        ('{"prompt": "a", "reference": "x", "difficulty": [1]}', "'difficulty' is [1]"),
        ('{"prompt": "a", "reference": "x", "wrong": "other"}', "not a list"),
        ('{"prompt": "a", "reference": "x", "wrong": {}}', "'wrong' is {}"),
        ('{"prompt": "a", "reference": "x"}\n{"prompt": " a ", "reference": "y"}', "row 2: another row answers the same prompt"),
        ("[1", "not JSON"),
    ],
)
def test_bad_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(path, 0)
    assert said in str(caught.value)


def test_one_reference_for_all_leaves_nothing_to_answer_wrongly(tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text('{"prompt": "a", "reference": "x"}\n{"prompt": "b", "reference": "x"}\n')
    answers(path).check(1.0)
    with pytest.raises(DataError, match="no wrong answer"):
        answers(path).check(0.9)
