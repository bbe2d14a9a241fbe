from __future__ import annotations

import pytest

from workbench.data.checks import check_example
from workbench.data.example import Example
from workbench.errors import DataError
from workbench.recipe.schema import Task

LABEL = Task(metric="label", labels=["0", "Yes"])


def one(answer: str, prompt: str = "p") -> Example:
    return Example(prompt=prompt, references=(answer,))


@pytest.mark.parametrize(
    ("example", "task", "message"),
    [
        (one("2"), LABEL, "'2' is not one of task.labels"),
        (one("0.0"), LABEL, "differs from the label '0'"),
        (one(" yes"), LABEL, "differs from the label 'Yes'"),
        (one(""), LABEL, "the answer is empty"),
        (Example(prompt="p", references=()), LABEL, "there is no answer"),
        (one("0", "\n "), LABEL, "the prompt is empty"),
        (one("{'a': 1}"), Task(metric="json_f1"), "is not JSON"),
        (one("[" * 100_000), Task(metric="json_exact"), "is not JSON"),
        (one("none"), Task(metric="numeric"), "holds no number"),
    ],
)
def test_refused(example: Example, task: Task, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_example(example, task)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("example", "task"),
    [(one("Yes"), LABEL), (one('{"a": 1}'), Task(metric="json_f1")), (one("about -1,200"), Task(metric="numeric"))],
)
def test_accepted(example: Example, task: Task) -> None:
    check_example(example, task)
