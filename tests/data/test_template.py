from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.data.template import Template
from workbench.errors import DataError


def test_fields_and_literal_braces() -> None:
    template = Template('{{"q": "{question}"}} {a b}{question}')
    assert template.fields == ("question", "a b")
    assert template.fill({"question": "why {x}?", "a b": 1.0}) == '{"q": "why {x}?"} 1.0why {x}?'


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (1.0, "1.0"), (True, "true"), ("01", "01"), ({"é": [1]}, '{"é": [1]}')])
def test_values_become_text(value: object, text: str) -> None:
    assert Template("{v}").fill({"v": value}) == text


@pytest.mark.parametrize("source", ["{", "}", "a {b", "{} {a}", "{a{b}}", "{a}}", "no field", "{{a}}"])
def test_a_wrong_template_is_refused(source: str) -> None:
    with pytest.raises(DataError) as caught:
        Template(source)
    assert caught.value.where == "task.prompt"
    assert caught.value.fix


def test_a_missing_field_lists_those_there_are() -> None:
    with pytest.raises(DataError, match=r"no field 'txt'; the fields are 'text', 'label'"):
        Template("{txt}").fill({"text": "a", "label": "b"})


@given(st.text())
def test_doubled_braces_are_the_text_itself(text: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert Template(doubled + "{x}").fill({"x": ""}) == text
