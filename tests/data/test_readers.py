from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from workbench.data.example import Example
from workbench.data.readers import read
from workbench.errors import DataError
from workbench.recipe.schema import Columns, Format, Task

TEXT = Task(metric="exact_match")
SARCASM = Path(__file__).parents[2] / "data" / "sarcasm" / "sample.jsonl"


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(folder: Path, *rows: Any, form: Format = "prompt_completion", task: Task = TEXT, **columns: Any) -> list[Example]:
    return read(jsonl(folder, *rows), format=form, columns=Columns(**columns), task=task)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# --- prompt_completion and table


def test_prompt_completion_with_metadata(tmp_path: Path) -> None:
    rows = {"q": "a", "a": 1, "tag": None, "n": {"x": 1}}
    [found] = read_rows(tmp_path, rows, prompt="q", completion="a", metadata=["tag", "n"])
    assert (found.prompt, found.references, found.metadata) == ("a", ("1",), {"tag": None, "n": {"x": 1}})
    assert found.where == "rows.jsonl, row 1"


def test_conversational_prompt_completion(tmp_path: Path) -> None:
    [found] = read_rows(tmp_path, {"prompt": [user("hi")], "completion": [assistant("hello")]})
    assert (found.prompt, found.references) == ((user("hi"),), ("hello",))


def test_a_template_fills_any_format(tmp_path: Path) -> None:
    task = Task(prompt="{a}/{b}", metric="exact_match")
    [found] = read_rows(tmp_path, {"a": 1, "b": "x", "completion": "y"}, form="table", task=task)
    assert found.prompt == "1/x"


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (1.0, "1.0"), (0.1, "0.1"), (False, "false"), (" x", " x")])
def test_answers_become_text(tmp_path: Path, value: Any, text: str) -> None:
    assert read_rows(tmp_path, {"prompt": "p", "completion": value})[0].references == (text,)


def test_a_nested_answer_is_json_for_a_json_metric_only(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": {"a": [1, "é"]}}
    assert read_rows(tmp_path, row, task=Task(metric="json_f1"))[0].references == ('{"a": [1, "é"]}',)
    with pytest.raises(DataError, match="compares text"):
        read_rows(tmp_path, row)


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffprompt,completion\r\n"a, ""b""\nc",01\r\n\r\nd,1.0\r\n'.encode())
    found = read(path, format="prompt_completion", columns=Columns(), task=TEXT)
    assert [(e.prompt, e.references, e.where) for e in found] == [
        ('a, "b"\nc', ("01",), "rows.csv, row 1"),
        ("d", ("1.0",), "rows.csv, row 2"),
    ]


def test_parquet_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = {
        "prompt": ["a", "b"],
        "completion": [1, 2],
        "x": [1.5, float("nan")],
        "d": [date(2026, 1, 2), None],
        "m": [Decimal("1.50")] * 2,
    }
    pq.write_table(pa.table(columns), path)
    found = read(path, format="prompt_completion", columns=Columns(metadata=["x", "d", "m"]), task=TEXT)
    assert [e.references for e in found] == [("1",), ("2",)]
    assert [e.metadata for e in found] == [{"x": 1.5, "d": "2026-01-02", "m": "1.50"}, {"x": None, "d": None, "m": "1.50"}]


def test_chat_rows_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    messages = [user("a") | {"name": None}, assistant("b", name=None)]
    pq.write_table(pa.table({"messages": [messages]}), path)
    [found] = read(path, format="chat", columns=Columns(), task=TEXT)
    assert (found.prompt, found.references) == ((user("a"),), ("b",))


# --- chat and openai


def test_earlier_turns_stay_in_the_prompt(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]
    [found] = read_rows(tmp_path, {"messages": turns}, form="chat")
    assert (found.prompt, found.references, found.answer) == (tuple(turns[:-1]), ("d",), None)


def test_the_recipes_system_message_replaces_the_rows(tmp_path: Path) -> None:
    task = Task(system="new", metric="exact_match")
    turns = [{"role": "developer", "content": "old"}, user("a"), assistant("b")]
    [found] = read_rows(tmp_path, {"messages": turns}, form="chat", task=task)
    assert found.prompt == ({"role": "system", "content": "new"}, user("a"))


def test_text_parts_are_joined_and_images_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    [found] = read_rows(tmp_path, {"messages": [{"role": "user", "content": parts}, assistant("c")]}, form="chat")
    assert found.prompt == (user("ab"),)
    with pytest.raises(DataError, match=r"messages\[0\]: the content .* not text"):
        read_rows(tmp_path, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, assistant("c")]}, form="chat")


def test_the_answer_is_the_last_assistant_message_with_weight(tmp_path: Path) -> None:
    turns = [user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1), user("e"), assistant("f", weight=0)]
    [found] = read_rows(tmp_path, {"messages": turns}, form="openai")
    assert (found.prompt, found.references) == (tuple(turns[:3]), ("d",))


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_a_tool_call_is_the_answer(tmp_path: Path, tools: Any) -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = {"messages": [user("a"), answer], "tools": tools, "parallel_tool_calls": False}
    [found] = read_rows(tmp_path, row, form="openai", task=Task(metric="json_f1"))
    assert found.tools == (TOOL,)
    assert found.answer == {"role": "assistant", "tool_calls": [CALL]}
    assert json.loads(found.references[0]) == [{"name": "f", "arguments": {"x": 1}}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "not a list of messages"),
        ({"messages": "hi"}, "not a list of messages"),
        ({"messages": [user("a")]}, "the answer must come last"),
        ({"messages": [assistant("a")]}, "no message comes before"),
        ({"messages": [user("a"), 3]}, r"messages\[1\] is 3"),
        ({"messages": [user("a"), {"role": "bot", "content": "b"}]}, "the role is 'bot'"),
        ({"messages": [user("a"), {"role": ["x"], "content": "b"}]}, "the role is"),
        ({"messages": [user("a"), {"role": "assistant"}]}, "there is no content"),
        ({"messages": [user("a"), assistant("b", weight=2)]}, "weight 2"),
        ({"messages": [user("a"), assistant("b", weight=0)]}, "no answer to learn"),
        ({"messages": [user("a") | {"tool_calls": [CALL]}, assistant("b")]}, "only the assistant"),
        ({"messages": [user("a"), assistant("b", tool_calls=[{}])]}, "not a tool call"),
        ({"messages": [user("a"), assistant("b", function_call={})]}, "old `function_call`"),
        ({"messages": [user("a"), assistant("b", tool_calls=[CALL, CALL])], "parallel_tool_calls": False}, "calls several tools"),
        ({"messages": [user("a"), assistant("b")], "tools": [{"name": "f"}]}, "not a tool schema"),
        ({"messages": [user("a"), assistant("b")], "tools": "[{"}, "not JSON"),
        ({"messages": [user("a"), assistant("b")], "functions": []}, "old `functions`"),
        ({"messages": [user(" "), assistant("b")]}, "every message of the prompt is empty"),
        ({"prompt": "a", "completion": "b"}, "no field 'messages'; the fields are 'prompt', 'completion'"),
    ],
)
def test_wrong_conversations_are_refused(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path, row, form="openai")


# --- evals


def test_the_sarcasm_sample_through_a_template_and_as_chat() -> None:
    task = Task(prompt="Headline: {input}\nSarcastic:", metric="label", labels=["0", "1"])
    found = read(SARCASM, format="evals", columns=Columns(), task=task)
    assert len(found) == 20
    assert found[0].prompt == "Headline: thirtysomething scientists unveil doomsday clock of hair loss\nSarcastic:"
    assert {e.references[0] for e in found} == {"0", "1"}
    chat = read(SARCASM, format="evals", columns=Columns(), task=Task(metric="exact_match"))
    assert [m["role"] for m in chat[0].prompt if isinstance(m, dict)] == ["system", "user"]


def test_several_ideals_and_text_input(tmp_path: Path) -> None:
    [found] = read_rows(tmp_path, {"input": "q", "ideal": ["a", 2]}, form="evals")
    assert (found.prompt, found.references) == ("q", ("a", "2"))


def test_input_and_system_of_a_template(tmp_path: Path) -> None:
    few_shot = [{"role": "system", "content": "x", "name": "example_user"}, {"role": "system", "content": "y", "name": "example_assistant"}]
    row = {"input": [{"role": "system", "content": "s"}, *few_shot, user("first"), user("last")], "ideal": "a"}
    task = Task(prompt="{system}|{input}", metric="exact_match")
    assert read_rows(tmp_path, row, form="evals", task=task)[0].prompt == "s|last"
    with pytest.raises(DataError, match="no field 'system'"):
        read_rows(tmp_path, {"input": [user("q")], "ideal": "a"}, form="evals", task=task)


# --- content keys


def test_another_wording_keeps_the_key(tmp_path: Path) -> None:
    row = {"input": [{"role": "system", "content": "s"}, user("What?")], "ideal": "a", "prompt": "What?", "completion": "a"}
    one = read_rows(tmp_path, row, form="evals", task=Task(prompt="A: {input}", metric="exact_match"))
    two = read_rows(tmp_path, row, form="evals", task=Task(prompt="{input}\nB", metric="exact_match"))
    three = read_rows(tmp_path, row, form="evals", task=Task(system="new", metric="exact_match"))
    four = read_rows(tmp_path, row)
    assert len({e.content_key for [e] in (one, two, three, four)}) == 1
    own = read_rows(tmp_path, row, form="evals")
    assert own[0].content_key != one[0].content_key  # the row's own system message is its content, unless the recipe replaces it


# --- bad files


def test_the_first_ten_bad_rows_and_the_total(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n' + '{"prompt": "a"}\n' * 12)
    with pytest.raises(DataError) as caught:
        read(path, format="prompt_completion", columns=Columns(), task=TEXT)
    message = str(caught.value)
    assert "12 rows cannot be used" in message
    assert "rows.jsonl, row 3: there is no field 'completion'" in message
    assert message.count("rows.jsonl, row") == 10
    assert "row 12:" in message
    assert "row 13:" not in message
    assert "and 2 more" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"),
        (b"\n \n", "holds no row"),
        (b"\xef\xbb\xbf", "holds no row"),
        (b'{"prompt": "a', "row 1: it is not JSON"),
        (b"[1]\n", "row 1: it is a JSON list"),
        (b'[\n{"prompt": "a", "completion": "b"}\n]', "row 1: it is not JSON.*one JSON object per line"),
        (b'{"prompt": NaN, "completion": "b"}', "row 1: NaN is not JSON"),
        (b'{"prompt": 1e999, "completion": "b"}', "row 1: '1e999' is too large"),
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "row 1: the key 'prompt' stands twice"),
        (b'{"prompt": ' + b"9" * 5000 + b', "completion": "c"}', "row 1: a number is too long"),
        (b'{"prompt": ' + b"[" * 100_000, "row 1: it is nested deeper"),
        (b'{"prompt": ' + b"[" * 80 + b"]" * 80 + b"}", "row 1: it is nested deeper"),
        (b'{"prompt": "\\ud800", "completion": "c"}', "row 1: an escape"),
        (b'{"prompt": "\xff", "completion": "c"}', "row 1: byte 13 is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "row 1: it is UTF-16"),
        (b'{"prompt": null, "completion": "c"}', "row 1: field 'prompt' is empty"),
        (b'{"prompt": "", "completion": "c"}', "row 1: the prompt is empty"),
        (b'{"prompt": "a", "completion": " "}', "row 1: the answer is empty"),
        (b'{"prompt": ["a"], "completion": "c"}', "row 1: field 'prompt' is"),
    ],
)
def test_bad_jsonl(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path, format="prompt_completion", columns=Columns(), task=TEXT)


def test_a_byte_order_mark_and_many_brackets_in_text_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"prompt": '\\"' + "[" * 100, "completion": "\u2028x"}, ensure_ascii=False).encode() + b"\r\n"
    )
    [found] = read(path, format="prompt_completion", columns=Columns(), task=TEXT)
    assert (found.prompt, found.references) == ('\\"' + "[" * 100, ("\u2028x",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"),
        (b"prompt,completion\n", "holds no row"),
        (b"prompt,completion\na,b,c\n", "row 1: it has 3 cells, but the header names 2"),
        (b"prompt,prompt\na,b\n", "names 'prompt' twice"),
        (b'prompt,completion\n"a,b\n', "not CSV"),
        (b"prompt,completion\na,b\na,\xff\n", "rows.csv:3: it is not UTF-8"),
        (b"text;label\na;b\n", "the fields are 'text;label'"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path, format="prompt_completion", columns=Columns(), task=TEXT)


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 100, "completion": [b"\xff"] * 100}), path)
    with pytest.raises(DataError, match=r"100 rows cannot be used"):
        read(path, format="prompt_completion", columns=Columns(), task=TEXT)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path, format="prompt_completion", columns=Columns(), task=TEXT)


@pytest.mark.parametrize(("name", "message"), [("none.jsonl", "no such file"), ("rows.txt", "kind '.txt'"), ("folder.csv", "a folder")])
def test_not_a_data_file(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, format="chat", columns=Columns(), task=TEXT)


# --- whatever is in the file: examples, or a DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "function", "name", "x"]), inner),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON},
    optional={"content": st.text(max_size=3) | JSON, "weight": JSON, "name": JSON, "tool_calls": st.just([CALL]) | JSON},
)
ROW = JSON | st.dictionaries(
    st.sampled_from(["prompt", "completion", "messages", "tools", "input", "ideal", "parallel_tool_calls", "functions", "tag"]),
    JSON | st.lists(MESSAGE, max_size=4),
)
TASKS = [
    Task(metric="exact_match"),
    Task(metric="json_f1", prompt="{input}"),
    Task(metric="label", labels=["0", "1"], system="s"),
    Task(metric="numeric", prompt="{prompt}{tag}"),
]
FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def examples_or_refusal(path: Path, columns: Columns) -> None:
    for form in get_args(Format):
        for task in TASKS:
            try:
                found = read(path, format=form, columns=columns, task=task)
            except DataError as error:
                str(error).encode()
            else:
                assert found
                for one in found:
                    text = json.dumps(one.to_json(), allow_nan=False, ensure_ascii=False)
                    text.encode()
                    again = Example.from_json(json.loads(text))
                    assert (again.content_key, again.references) == (one.content_key, one.references)
                    assert all(reference.strip() for reference in one.references)


@FUZZ
@given(rows=st.lists(ROW, max_size=3))
@example(rows=[{"prompt": "a", "completion": "1", "tag": 1}])
def test_any_json_rows(tmp_path: Path, rows: list[Any]) -> None:
    examples_or_refusal(jsonl(tmp_path, *rows), Columns(metadata=["tag"]))


@FUZZ
@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), tools=JSON, parallel=JSON)
def test_any_messages(tmp_path: Path, messages: list[Any], tools: Any, parallel: Any) -> None:
    row = {"messages": messages, "input": messages, "ideal": "1", "tools": tools, "parallel_tool_calls": parallel}
    examples_or_refusal(jsonl(tmp_path, row), Columns())


@FUZZ
@given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet"])
)
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    examples_or_refusal(path, Columns())


@FUZZ
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_damage_to_parquet(tmp_path: Path, position: int, value: int) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], "x": [[{"y": 1.5}], None]}), path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    examples_or_refusal(path, Columns())
