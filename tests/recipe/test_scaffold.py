from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from workbench.data.readers import read
from workbench.errors import DataError
from workbench.recipe.scaffold import TEMPLATES, convert_traffic, from_template, from_traffic, needs_conversion
from workbench.recipe.schema import Recipe
from workbench.sources.reference import PypiSource, parse


def loaded(text: str) -> Recipe:
    return Recipe.model_validate(YAML(typ="safe").load(text))


def log(folder: Path, *rows: Any) -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def scaffold(folder: Path, path: Path) -> Recipe:
    """The recipe, after its data was converted (if it must be) and read as the recipe says."""
    recipe = loaded(from_traffic("mine", path))
    if needs_conversion(path):
        assert recipe.data.source == "mine.jsonl"
        convert_traffic(path, folder / "mine.jsonl")
    data = folder / recipe.data.source
    assert read(data, format=recipe.data.format, columns=recipe.data.columns, task=recipe.task)
    return recipe


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def request(question: str, answer: str, **choice: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": 'Say "yes": or\tno'}, user(question)]
    return {"request": {"model": "m", "messages": messages}, "response": {"choices": [{"message": assistant(answer), **choice}]}}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_recipes(template: str, tmp_path: Path) -> None:
    recipe = loaded(from_template("my-task", template))
    assert recipe.name == "my-task"
    assert recipe.train is not None
    assert isinstance(parse(recipe.model.source, base=tmp_path), PypiSource)


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("classification", {"text": "Where is my card?", "label": "card_arrival"}),
        ("extraction", {"text": "Ada, 1842", "completion": {"name": "Ada"}}),
        ("chat", {"messages": [user("a"), assistant("b")]}),
    ],
)
def test_the_rows_a_template_describes_can_be_read(template: str, row: Any, tmp_path: Path) -> None:
    recipe = loaded(from_template("x", template))
    (tmp_path / recipe.data.source).write_text(json.dumps(row))
    assert read(tmp_path / recipe.data.source, format=recipe.data.format, columns=recipe.data.columns, task=recipe.task)


def test_the_table_template(tmp_path: Path) -> None:
    recipe = loaded(from_template("x", "table"))
    (tmp_path / "train.csv").write_text("title,description,category,region\na,b,c,d\n")
    [found] = read(tmp_path / "train.csv", format="table", columns=recipe.data.columns, task=recipe.task)
    assert found.metadata == {"region": "d"}


def test_unknown_template_and_bad_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no template 'x'"):
        from_template("a", "x")
    for make in (lambda: from_template("My Task", "chat"), lambda: from_traffic("a: b", log(tmp_path, request("a", "b")))):
        with pytest.raises(DataError, match="cannot be a recipe's name"):
            make()


def test_requests_with_a_label_set(tmp_path: Path) -> None:
    rows = [request(f"q{n}", "yes" if n % 2 else "no") for n in range(20)]
    path = log(tmp_path, *rows, request("cut", "ye", finish_reason="length"), {"request": {}, "response": {"error": "x"}}, '{"requ')
    text = from_traffic("mine", path)
    assert "from 20 conversations" in text
    assert "3 line(s)" in text
    recipe = scaffold(tmp_path, path)
    assert (recipe.data.format, recipe.task.metric, recipe.task.labels) == ("chat", "label", ["no", "yes"])
    assert recipe.task.system == 'Say "yes": or\tno'
    assert len((tmp_path / "mine.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("answer", "metric"),
    [
        (lambda n: json.dumps({"a": n}), "json_f1"),
        (lambda n: f"{n}.5", "numeric"),
        (lambda n: f"word{n}", "exact_match"),
        (lambda n: f"A long answer, which explains number {n} in much more than sixty characters.", "rouge_l"),
        (lambda n: str(n % 2), "label"),
    ],
)
def test_metrics(tmp_path: Path, answer: Any, metric: str) -> None:
    path = log(tmp_path, *({"input": f"q{n}", "output": answer(n)} for n in range(30)))
    recipe = scaffold(tmp_path, path)
    assert (recipe.task.metric, recipe.data.format) == (metric, "prompt_completion")
    assert (recipe.data.columns.prompt, recipe.data.columns.completion) == ("input", "output")
    assert recipe.data.source.endswith("log.jsonl")
    longest = max(len(answer(n)) for n in range(30))
    assert recipe.task.max_new_tokens >= longest / 4


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ASKED = {"messages": [user("a")]}
ANSWERED = {"choices": [{"message": assistant("b")}]}
RESPONSES_API = {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]}]}
MESSAGES_API = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}


@pytest.mark.parametrize(
    ("row", "form", "converted"),
    [
        ({"messages": [user("a"), assistant("b")], "id": 3}, "chat", False),
        ({"messages": [user("a"), assistant("b") | {"weight": 1}]}, "openai", False),
        ({"messages": [user("a"), CALLS], "tools": [TOOL]}, "openai", False),
        ({"messages": [user("a"), assistant("b")], "functions": []}, "chat", True),
        ({"messages": [user("a"), assistant("b")], "parallel_tool_calls": 1}, "chat", True),
        (ASKED | {"response": ANSWERED}, "chat", True),
        (ASKED | {"output": "b"}, "chat", True),
        ({"request": {"body": ASKED}, "response": {"status_code": 200, "body": ANSWERED}}, "chat", True),
        ({"request": {"input": "a", "instructions": "s"}, "response": RESPONSES_API}, "chat", True),
        ({"request": ASKED | {"system": "s"}, "response": MESSAGES_API}, "chat", True),
        ({"request": ASKED | {"tools": [TOOL]}, "response": {"choices": [{"message": CALLS}]}}, "openai", True),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", False),
        ({"prompt": "a", "choices": [{"text": "b"}]}, "chat", True),
        ({"input": [user("a")], "output": assistant("b")}, "chat", True),
    ],
)
def test_shapes(tmp_path: Path, row: Any, form: str, converted: bool) -> None:
    path = log(tmp_path, row)
    assert needs_conversion(path) == converted
    assert scaffold(tmp_path, path).data.format == form


def test_outliers_are_dropped_rather_than_paid_for(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "some words"} for n in range(200)]
    train = scaffold(tmp_path, log(tmp_path, *rows)).train
    assert train is not None
    assert train.overflow == "refuse"
    train = scaffold(tmp_path, log(tmp_path, *rows, {"prompt": "x" * 9000, "completion": "some words"})).train
    assert train is not None
    assert (train.overflow, train.max_length) == ("drop", 64)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("a")]},
        {"messages": [{"role": "bot", "content": "a"}, assistant("b")]},
        {"messages": [user("a"), assistant("b") | {"weight": 0}]},
        {"request": {"messages": [user("a")]}, "response": {"status_code": 429, "body": {}}},
        {"request": {"messages": [user("a")]}, "response": None},
        {"request": {"messages": [user([{"type": "image_url"}])]}, "response": "b"},  # type: ignore[arg-type]
        {"prompt": "\ud800", "completion": "b"},
        [],
        {},
        "{",
    ],
)
def test_no_conversation(tmp_path: Path, row: Any) -> None:
    with pytest.raises(DataError, match="none of its 1 lines"):
        from_traffic("x", log(tmp_path, row))


def test_unreadable_and_existing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        from_traffic("x", tmp_path / "none.jsonl")
    path = log(tmp_path, request("a", "b"))
    with pytest.raises(DataError, match="exists already"):
        convert_traffic(path, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "message", "body"]), inner)
    ),
    max_leaves=5,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={
        "content": st.text(max_size=4) | JSON,
        "weight": st.integers(-1, 1) | JSON,
        "tool_calls": st.just([CALL]) | JSON,
        "name": JSON,
    },
)
MESSAGES = st.lists(MESSAGE, max_size=4)
LOG_ROW = st.dictionaries(
    st.sampled_from(
        ["messages", "request", "response", "prompt", "completion", "input", "output", "choices", "tools", "functions", "error"]
    ),
    MESSAGES | JSON | st.fixed_dictionaries({"messages": MESSAGES}) | st.fixed_dictionaries({"choices": st.lists(JSON, max_size=1)}),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(LOG_ROW | JSON | st.builds(lambda m: {"messages": m}, MESSAGES), min_size=1, max_size=3))
def test_whatever_is_logged_becomes_a_readable_recipe_or_one_clear_error(tmp_path: Path, rows: list[Any]) -> None:
    (tmp_path / "mine.jsonl").unlink(missing_ok=True)
    path = log(tmp_path, *(json.dumps(row) for row in rows))
    try:
        from_traffic("mine", path)
    except DataError:
        return
    scaffold(tmp_path, path)
