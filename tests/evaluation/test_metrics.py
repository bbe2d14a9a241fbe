from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import EvaluationError
from workbench.evaluation.metrics import Score, scorer
from workbench.evaluation.metrics.json_output import equal
from workbench.evaluation.metrics.perplexity import perplexity_score
from workbench.recipe.schema import Task

HERE = Path(__file__).parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def score(metric: str, output: str, *references: str, base: Path = HERE, **task: Any) -> Score:
    return scorer(Task(metric=metric, **task), base=base).score(output, references, {})  # type: ignore[arg-type]


# Every metric ------------------------------------------------------------------------------------------------------

TASKS: dict[str, dict[str, Any]] = {
    "exact_match": {},
    "contains": {},
    "label": {"labels": ["a", "b"]},
    "numeric": {"tolerance": 0.1},
    "regex": {"pattern": "(.*)"},
    "json_f1": {},
    "json_exact": {},
    "rouge_l": {},
    "chrf": {},
    "perplexity": {},
}


@pytest.mark.parametrize("metric", TASKS)
@settings(deadline=None)  # the first example pays for importing a library
@given(output=st.text(), references=st.lists(st.text(), max_size=3))
def test_any_text_gives_a_score_or_a_reason(metric: str, output: str, references: list[str]) -> None:
    result = score(metric, output, *references, **TASKS[metric])
    assert result.reason if result.value is None else 0 <= result.value <= 1
    assert result.value is not None or result.valid is None


@pytest.mark.parametrize("metric", TASKS)
def test_no_reference_is_unscored(metric: str) -> None:
    assert score(metric, "a", **TASKS[metric]).value is None


@pytest.mark.parametrize(
    ("metric", "right", "wrong", "task"),
    [
        ("exact_match", "the cat", "a dog", {}),
        ("contains", "It is the cat.", "a dog", {}),
        ("label", "cat", "dog", {"labels": ["cat", "dog"]}),
        ("regex", "so: cat", "so: dog", {"pattern": r"so: (\w+)"}),
        ("rouge_l", "cat", "dog", {}),
        ("chrf", "cat", "dog", {}),
    ],
)
def test_the_best_reference_counts(metric: str, right: str, wrong: str, task: dict[str, Any]) -> None:
    references = ("bird", "cat") if metric != "label" else ("dog", "cat")
    assert score(metric, right, *references, **task).value == 1.0
    assert score(metric, wrong, "cat", **task).value == 0.0


# Text --------------------------------------------------------------------------------------------------------------


def test_exact_match_normalises_like_squad_unless_told_not_to() -> None:
    assert score("exact_match", " The  Eiffel-Tower! ", "eiffeltower").value == 1.0
    assert score("exact_match", "«Paris»。", "paris").value == 1.0
    assert score("exact_match", "Paris", "paris", normalize=False).value == 0.0
    assert score("exact_match", " paris\n", "paris", normalize=False).value == 1.0


def test_answers_of_which_normalisation_leaves_nothing_stay_different() -> None:
    assert score("exact_match", "the", "a").value == 0.0
    assert score("exact_match", "?", "!").value == 0.0
    assert score("contains", "anything", "?").value == 0.0


def test_contains_needs_something_to_look_for() -> None:
    assert score("contains", "The answer is PARIS.", "Paris").value == 1.0
    assert score("contains", "The answer is PARIS.", "Paris", normalize=False).value == 0.0
    assert score("contains", "anything", " ").value is None


def test_label_outside_the_set() -> None:
    labels = {"labels": ["yes", "no"]}
    assert score("label", " yes\n", "yes", **labels) == Score(1.0, True)
    assert score("label", "no", "yes", **labels) == Score(0.0, True)
    assert score("label", "Yes", "yes", **labels) == Score(0.0, False, "the output 'Yes' is not one of the 2 labels")
    assert score("label", "yes", "maybe", **labels) == Score(None, None, "the reference 'maybe' is not one of the 2 labels")


def test_regex_with_and_without_a_group() -> None:
    assert score(
        "regex",
        "x = 12;",
        pattern=r"\d+",
    ) == Score(1.0, True)
    assert score("regex", "none", "12", pattern=r"\d+") == Score(0.0, False, "the pattern is not found in the output")
    assert score("regex", "x =  12 ;", "12", pattern=r"=([^;]*);") == Score(1.0, True)
    assert score("regex", "x = 13;", "12", pattern=r"=([^;]*);") == Score(0.0, True)
    with pytest.raises(EvaluationError, match="not a regular expression"):
        score("regex", "", "", pattern="(")


# Numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "reference", "value"),
    [
        ("2 + 2 = 4.", "4", 1.0),
        ("between 3 and 5", "3", 0.0),
        ("$1,234.50", "1234.5", 1.0),
        ("1,234,567", "1234567", 1.0),
        ("1,2345", "12345", 0.0),
        ("6.02e23", "6.02E+23", 1.0),
        (".5", "0.50", 1.0),
        ("-7", "7", 0.0),
        ("\u22127", "-7", 1.0),
        ("pages 5-7", "7", 1.0),
        ("GPT-4", "4", 1.0),
        ("50%", "0.5", 1.0),
        ("50 %", "50", 1.0),
        ("0.5", "50%", 1.0),
        ("12.3%", "0.123", 1.0),
        ("50%", "0.5%", 0.0),
        ("0.1", "0.10000000000000001", 0.0),
    ],
)
def test_numeric(output: str, reference: str, value: float) -> None:
    assert score("numeric", output, reference) == Score(value, True)


def test_numeric_tolerance_is_relative() -> None:
    assert score("numeric", "101", "100", tolerance=0.01).value == 1.0
    assert score("numeric", "101.01", "100", tolerance=0.01).value == 0.0
    assert score("numeric", "-99", "-100", tolerance=0.01).value == 1.0
    assert score("numeric", "0.0001", "0", tolerance=0.5).value == 0.0


def test_numeric_without_numbers() -> None:
    assert score("numeric", "none", "4") == Score(0.0, False, "the output holds no number")
    assert score("numeric", "1e999", "4") == Score(0.0, False, "the output holds no number")
    assert score("numeric", "4", "four").value is None
    assert score("numeric", "4", "3 or 4").value is None


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_numeric_reads_every_float_back(number: float) -> None:
    assert score("numeric", f"It is {number!r}.", repr(number)).value == 1.0


# JSON --------------------------------------------------------------------------------------------------------------


@given(JSON)
def test_json_equals_itself_however_it_is_written(value: Any) -> None:
    fenced = f"Sure:\n```json\n{json.dumps(value, indent=2)}\n```\nDone."
    for metric in ("json_exact", "json_f1"):
        assert score(metric, fenced, json.dumps(value, sort_keys=True)) == Score(1.0, True)


@given(JSON, JSON)
def test_json_f1_is_one_exactly_where_json_exact_is(left: Any, right: Any) -> None:
    f1, exact = (score(metric, json.dumps(left), json.dumps(right)).value for metric in ("json_f1", "json_exact"))
    assert (f1 == 1.0) == (exact == 1.0)
    assert f1 == score("json_f1", json.dumps(right), json.dumps(left)).value


def test_json_equality_tells_true_from_one() -> None:
    assert equal({"a": [1]}, {"a": [1.0]})
    assert not equal([True], [1])
    assert not equal([], {})


def test_json_f1_counts_leaves() -> None:
    reference = json.dumps({"intent": "book", "slots": {"city": "Rome", "day": "Monday"}})
    assert score("json_f1", json.dumps({"intent": "book", "slots": {"city": "Paris"}}), reference).value == pytest.approx(2 * 1 / (2 + 3))
    assert score("json_f1", "[]", reference).value == 0.0
    assert score("json_f1", "no idea", reference) == Score(0.0, False, "the output is not JSON")
    assert score("json_f1", "{}", "no idea").value is None
    assert score("json_f1", "NaN", "1").valid is False
    assert score("json_f1", "[" * 500 + "]" * 500, "1").valid is False


def test_json_schema(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}))
    task = {"json_schema": "s.json", "base": tmp_path}
    assert score("json_exact", '{"a": 1}', '{"a": 1}', **task) == Score(1.0, True)
    broken = score("json_exact", '{"a": "1"}', '{"a": 1}', **task)
    assert broken.value == 0.0 and broken.valid is False and broken.reason and "$.a" in broken.reason
    assert score("json_exact", '{"a": 1}', '{"b": 1}', **task).value is None
    partly = score("json_f1", '{"b": 1, "c": 2}', '{"a": 1, "b": 1}', **task)
    assert partly.value == 0.5 and partly.valid is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ('{"type": "integr"}', "no JSON Schema"),
        ("3", "no JSON Schema"),
        ('{"pattern": "("}', "no JSON Schema"),
        ("\x00", "not JSON"),
    ],
)
def test_a_bad_schema_is_refused_up_front(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        scorer(Task(metric="json_f1", json_schema="s.json"), base=tmp_path)


def test_a_schema_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"$ref": "https://example.org/other.json"}')
    with pytest.raises(EvaluationError, match="refers to something that is not in it"):
        score("json_exact", "1", "1", json_schema="s.json", base=tmp_path)


# Libraries ---------------------------------------------------------------------------------------------------------


def test_rouge_l_and_chrf_are_the_libraries_numbers() -> None:
    # Lin (2004), section 3.2: "police killed the gunman" against "police kill the gunman" shares three of four words in order.
    assert score("rouge_l", "police kill the gunman", "police killed the gunman").value == pytest.approx(0.75)
    assert score("rouge_l", "абв", "абв").value is None
    assert score("chrf", "абв", "абв").value == 1.0
    chrf = score("chrf", "the cat sat", "the cat sat down").value
    assert chrf is not None and 0.5 < chrf < 1.0
    assert score("chrf", "x", " ").value is None


def test_perplexity_score_is_the_inverse_of_perplexity() -> None:
    assert perplexity_score(-math.log(4)) == pytest.approx(1 / 4)
    assert perplexity_score(1e-9) == 1.0


# A user's function -------------------------------------------------------------------------------------------------

SCORING = """
import helper
def good(output, reference, metadata): return helper.same(output, reference) * metadata.get("weight", 1)
def raises(output, reference, metadata): raise KeyError("oops")
def answer(output, reference, metadata): return {"nan": float("nan"), "two": 2, "none": None, "true": True, "text": "1"}[output]
constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "helper.py").write_text("def same(a, b): return float(a == b)\n")
    (tmp_path / "scoring.py").write_text(SCORING)
    (tmp_path / "lib" / "scoring.py").write_text(SCORING)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    return tmp_path


@pytest.mark.parametrize("module", ["scoring", "scoring.py", "lib.scoring", "lib/scoring.py"])
def test_a_function_beside_the_recipe(folder: Path, module: str) -> None:
    path = list(sys.path)
    grade = scorer(Task(metric="function", function=f"{module}:good"), base=folder)
    assert grade.score("x", ["y", "x"], {}) == Score(1.0)
    assert grade.score("x", ["x"], {"weight": 0.5}) == Score(0.5)
    assert sys.path == path


def test_two_recipes_with_a_module_of_the_same_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "grading.py").write_text(f"def grade(*_): return {float(name == 'one')}\n")
    values = [score("function", "", "", function="grading:grade", base=tmp_path / name).value for name in ("one", "two")]
    assert values == [1.0, 0.0]


def test_a_function_that_misbehaves_leaves_the_example_unscored(folder: Path) -> None:
    assert score("function", "", "", function="scoring:raises", base=folder) == Score(None, None, "scoring:raises raised KeyError: 'oops'")
    for output in ("nan", "two", "none", "text"):
        result = score("function", output, "", function="scoring:answer", base=folder)
        assert result.value is None and result.reason and "not a number from 0 to 1" in result.reason
    assert score("function", "true", "", function="scoring:answer", base=folder).value == 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("scoring", "module:name"),
        ("missing:f", "cannot import 'missing'"),
        ("broken:f", "cannot import 'broken': SyntaxError"),
        ("leaves:f", "cannot import 'leaves': SystemExit"),
        ("scoring:absent", "no function 'absent'"),
        ("scoring:constant", "no function 'constant'"),
    ],
)
def test_a_function_that_is_not_there_is_refused_up_front(folder: Path, function: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        scorer(Task(metric="function", function=function), base=folder)
