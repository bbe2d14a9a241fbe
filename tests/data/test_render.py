from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from tests.support.tiny import make_tokenizer
from workbench.data.example import Example, Message
from workbench.data.readers import read
from workbench.data.render import IGNORED, Renderer, Row, fit, quantile
from workbench.errors import DataError
from workbench.models.load import load_tokenizer
from workbench.recipe.schema import Columns, Task

EOS = "<|im_end|>"
ASSISTANT = "<|im_start|>assistant\n"
#: Any text, but not the spelling of a control token: tokenizers read that as the token itself.
TEXTS = st.text(max_size=40).filter(lambda text: "<|im_" not in text)
ANSWERS = TEXTS.filter(lambda text: bool(text.strip()))
TURNS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@pytest.fixture
def own(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer to change."""
    return load_tokenizer(folder)


def task(**keys: Any) -> Task:
    return Task(metric="exact_match", **keys)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **keys: Any) -> Message:
    return {"role": "assistant", "content": text, **keys}


def chat(*messages: Message, answer: str = "Paris.", **keys: Any) -> Example:
    return Example(messages, (answer,), where="chat.jsonl, row 7", **keys)


def conversation(turns: Sequence[tuple[str, str]], question: str, answer: str) -> Example:
    return chat(*(m for asked, said in turns for m in (user(asked), assistant(said))), user(question), answer=answer)


def supervised_text(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[str]:
    """The supervised runs of a row as text."""
    runs: list[list[int]] = [[]]
    for token, wanted in zip(row.input_ids, row.supervised, strict=True):
        if wanted:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


# The prompt ---------------------------------------------------------------------------------------------------------


@given(turns=TURNS, question=TEXTS, answer=ANSWERS)
def test_inference_sees_the_beginning_of_the_chat_row(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], question: str, answer: str
) -> None:
    renderer, example = Renderer(tokenizer, task()), conversation(turns, question, answer)
    prompt = renderer.prompt_ids(example)
    messages = [*example.prompt, assistant(answer)]
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer(asked, add_special_tokens=False)["input_ids"]
    for supervise in ("completion", "assistant", "all"):
        row = renderer.row(example, supervise)  # type: ignore[arg-type]
        assert list(row.input_ids[: len(prompt)]) == prompt and row.prompt == len(prompt)
        # nothing is lost or invented: the row is the template's own text, up to the end of the answer
        assert tokenizer.decode(row.input_ids) + "\n" == tokenizer.apply_chat_template(messages, tokenize=False)


@given(prompt=ANSWERS, answer=ANSWERS)
def test_inference_sees_the_beginning_of_the_text_row(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> None:
    renderer, example = Renderer(tokenizer, task()), Example(prompt, (answer,))
    row = renderer.row(example, "completion")
    assert list(row.input_ids[: row.prompt]) == renderer.prompt_ids(example) == tokenizer(prompt)["input_ids"]
    between = "" if prompt[-1].isspace() or answer[0].isspace() else " "
    assert tokenizer.decode(row.input_ids) == prompt + between + answer + EOS


def test_a_text_prompt_in_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    example = Example("Capital of France?", ("Paris.",))
    ids = Renderer(tokenizer, task(chat=True)).prompt_ids(example)
    assert tokenizer.decode(ids) == f"<|im_start|>user\nCapital of France?{EOS}\n{ASSISTANT}"
    with_system = Renderer(tokenizer, task(chat=True, system="Be brief.")).prompt_ids(example)
    assert tokenizer.decode(with_system) == f"<|im_start|>system\nBe brief.{EOS}\n{tokenizer.decode(ids)}"
    assert Renderer(tokenizer, task(system="Be brief.")).prompt_ids(example) == tokenizer("Capital of France?")["input_ids"]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_recipes_system_message_replaces_the_rows(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, role: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [{"role": role, "content": "Ramble."}, user("Hi"), assistant("Yes?")]}))
    recipe_task = task(system="Be brief.")
    (example,) = read(file, format="chat", columns=Columns(), task=recipe_task)
    text = tokenizer.decode(Renderer(tokenizer, recipe_task).row(example, "completion").input_ids)
    assert text == f"<|im_start|>system\nBe brief.{EOS}\n<|im_start|>user\nHi{EOS}\n{ASSISTANT}Yes?{EOS}"


def test_chat_rows_as_raw_text(tokenizer: PreTrainedTokenizerBase) -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": "{}"}}
    example = chat(user("One"), assistant("", tool_calls=[call]), user(""), user("Three"), answer="Four")
    row = Renderer(tokenizer, task(chat=False)).row(example, "completion")
    assert tokenizer.decode(row.input_ids[: row.prompt]) == f"One\n\n{json.dumps([call])}\n\nThree\n\n"
    assert supervised_text(tokenizer, row) == [f"Four{EOS}"]


# What is supervised -------------------------------------------------------------------------------------------------


@given(turns=TURNS, question=TEXTS, answer=ANSWERS)
def test_supervision(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], question: str, answer: str) -> None:
    renderer, example = Renderer(tokenizer, task()), conversation(turns, question, answer)
    assert supervised_text(tokenizer, renderer.row(example, "completion")) == [answer + EOS]
    assert supervised_text(tokenizer, renderer.row(example, "assistant")) == [*(said + EOS for _, said in turns), answer + EOS]
    assert all(renderer.row(example, "all").supervised)


def test_turns_of_weight_0_are_read_and_not_learnt(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    messages = [user("a"), assistant("bad", weight=0), user("b"), assistant("good", weight=1), user("c"), assistant("end")]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": [*messages, user("d"), assistant("x", weight=0)]}))
    for example in read(file, format="openai", columns=Columns(), task=task()):
        row = Renderer(tokenizer, task()).row(example, "assistant")
        assert supervised_text(tokenizer, row) == [f"good{EOS}", f"end{EOS}"]
        assert f"bad{EOS}" in tokenizer.decode(row.input_ids)


def test_the_end_is_supervised_though_padding_is_the_same_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for example in (Example("a", ("b",)), chat(user("a"))):
        labels = Renderer(tokenizer, task()).row(example, "completion").labels
        assert labels[-1] == tokenizer.eos_token_id


def test_labels_mask_what_is_not_supervised_and_what_nothing_predicts() -> None:
    assert Row((5, 6, 7), (False, True, True), 1, "").labels == [IGNORED, 6, 7]
    assert Row((5, 6, 7), (True, True, True), 1, "").labels == [IGNORED, 6, 7]


# Chat templates -----------------------------------------------------------------------------------------------------


def test_a_template_without_an_end_of_turn_gets_one(own: PreTrainedTokenizerBase) -> None:
    own.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    row = Renderer(own, task()).row(chat(user("Capital?")), "completion")
    assert own.decode(row.input_ids) == f"[user] Capital?\n[assistant] Paris.\n{EOS}"
    assert supervised_text(own, row) == [f"Paris.\n{EOS}"]


def test_what_a_template_writes_after_the_end_is_not_learnt(own: PreTrainedTokenizerBase) -> None:
    own.chat_template += "{% if not add_generation_prompt %}<|im_start|>footer<|im_end|>{% endif %}"
    assert supervised_text(own, Renderer(own, task()).row(chat(user("a")), "completion")) == [f"Paris.{EOS}"]


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (
            "{{ messages|length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "renders the prompt differently once the answer follows",
        ),
        ("{{ raise_exception('only one user message, please') }}", "only one user message, please"),
        ("{{ messages[0].content.nothing.at.all }}", "refuses the row"),
        ("{% for m in messages %}", "refuses the row"),
        (None, "the model has none"),
    ],
)
def test_templates_that_cannot_be_used(own: PreTrainedTokenizerBase, template: str | None, what: str) -> None:
    own.chat_template = template
    with pytest.raises(DataError, match=what) as caught:
        Renderer(own, task()).row(chat(user("a")), "completion")
    assert caught.value.where == "chat.jsonl, row 7" and caught.value.fix


def test_a_template_that_rewrites_earlier_turns(own: PreTrainedTokenizerBase) -> None:
    own.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = Renderer(own, task())
    example = chat(user("a"), assistant("<think>hm</think>b"), user("c"))
    assert supervised_text(own, renderer.row(example, "completion")) == [f"Paris.{EOS}"]
    with pytest.raises(DataError, match="rewrites earlier turns") as caught:
        renderer.row(example, "assistant")
    assert caught.value.where == "chat.jsonl, row 7" and "completion" in str(caught.value.fix)


def test_tool_calls_reach_the_template_as_objects(own: PreTrainedTokenizerBase) -> None:
    own.chat_template = (
        "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

    def call(city: str) -> Message:
        function = {"name": "weather", "arguments": json.dumps({"city": city})}
        return {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}

    before = (user("Weather?"), call("Oslo"), {"role": "tool", "tool_call_id": "1", "content": "rain"}, user("And here?"))
    example = Example(before, ("[]",), tools=(tool,), answer=call("Rome"))
    row = Renderer(own, task()).row(example, "assistant")
    assert supervised_text(own, row) == [f"weather(Oslo){EOS}", f"weather(Rome){EOS}"]
    assert own.decode(row.input_ids).startswith(f"<|im_start|>tools\n{json.dumps([tool])}{EOS}")
    assert json.loads(before[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}, "the example itself was changed"


# Tokenizers that add tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True], ids=["adds a beginning", "adds a beginning and an end"])
def test_beginning_once_and_no_end_inside(own: PreTrainedTokenizerBase, ends: bool) -> None:
    own.add_special_tokens({"bos_token": "<s>"})
    bos, eos = own.bos_token_id, own.eos_token_id
    single = f"<s> $A {EOS}" if ends else "<s> $A"
    own.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", bos), (EOS, eos)])
    assert own("a")["input_ids"][0] == bos and (own("a")["input_ids"][-1] == eos) == ends
    own.chat_template = "{{ bos_token }}" + own.chat_template
    for example in (Example("What is the capital?", ("Paris.",)), chat(user("What is the capital?"))):
        renderer = Renderer(own, task())
        ids = list(renderer.row(example, "completion").input_ids)
        answer = ids[len(renderer.prompt_ids(example)) :]
        assert ids[0] == bos and ids.count(bos) == 1
        assert own.decode(answer).strip() == f"Paris.{EOS}" and answer.count(eos) == 1
    raw = Renderer(own, task()).row(Example("a", ("b",)), "completion")
    assert raw.input_ids.count(eos) == 1


@given(label=ANSWERS, prompt=ANSWERS)
def test_labels_render_exactly_as_answers(tokenizer: PreTrainedTokenizerBase, label: str, prompt: str) -> None:
    for renderer, example in (
        (Renderer(tokenizer, task()), Example(prompt, ("other",))),
        (Renderer(tokenizer, task(chat=True)), Example(prompt, ("other",))),
        (Renderer(tokenizer, task()), chat(user(prompt), answer="other")),
    ):
        learnt = renderer.row(Example(example.prompt, (label,)), "completion")
        assert [*renderer.label_ids(example, label), tokenizer.eos_token_id] == list(learnt.input_ids[learnt.prompt :])


# The fingerprint ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_rendering(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    same = Renderer(tokenizer, task()).fingerprint
    assert same == Renderer(load_tokenizer(folder), task()).fingerprint
    for other in (task(max_new_tokens=5), task(stop=["x"]), task(normalize=False), Task(metric="label", labels=["a", "b"])):
        assert Renderer(tokenizer, other).fingerprint == same
    template, lower, end, start = (load_tokenizer(folder) for _ in range(4))
    template.chat_template += " "
    lower.backend_tokenizer.normalizer = Lowercase()
    end.eos_token = "<|im_start|>"
    start.add_special_tokens({"bos_token": "<s>"})
    start.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start.bos_token_id)])
    changed = [Renderer(one, task()).fingerprint for one in (template, lower, end, start)]
    changed += [Renderer(tokenizer, task(chat=value)).fingerprint for value in (True, False)]
    assert len({same, *changed}) == 7


# Lengths ------------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=300), share=st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_quantile_is_the_inverted_distribution_function(lengths: list[int], share: float) -> None:
    assert quantile(lengths, share) == np.quantile(lengths, share, method="inverted_cdf")


def rows(*lengths: tuple[int, int]) -> list[Row]:
    """Rows of (prompt, answer) tokens, numbered from 0."""
    return [
        Row(tuple(range(prompt + answer)), (False,) * prompt + (True,) * answer, prompt, f"f, row {number}")
        for number, (prompt, answer) in enumerate(lengths, 1)
    ]


def test_rows_that_fit_are_left_alone() -> None:
    given_rows = rows((3, 2), (1, 4))
    for overflow in ("refuse", "drop", "truncate"):
        assert fit(given_rows, 5, overflow) == (given_rows, 0)


def test_refusing_names_number_and_worst() -> None:
    with pytest.raises(DataError) as caught:
        fit(rows((3, 2), (9, 2), (20, 3), (9, 2)), 10, "refuse")
    assert str(caught.value).startswith("f, row 3: 3 of 4 rows are longer than train.max_length 10; the longest has 23 tokens")
    assert "raise train.max_length to 23" in str(caught.value.fix)


def test_dropping() -> None:
    given_rows = rows((3, 2), (9, 2), (1, 4))
    assert fit(given_rows, 10, "drop") == ([given_rows[0], given_rows[2]], 1)


def test_truncating_cuts_the_beginning_of_the_prompt() -> None:
    (short, cut), number = fit(rows((3, 2), (9, 3)), 5, "truncate")
    assert number == 1 and len(short.input_ids) == 5
    assert cut.input_ids == (7, 8, 9, 10, 11) and cut.supervised == (False, False, True, True, True) and cut.prompt == 2


def test_truncating_an_answer_that_is_too_long_by_itself_cuts_its_end() -> None:
    ((cut,), _) = fit(rows((4, 9)), 5, "truncate")
    assert cut.input_ids == (4, 5, 6, 7, 8) and cut.prompt == 0


@given(prompt=st.integers(1, 20), answer=st.integers(1, 20), limit=st.integers(1, 30), supervise=st.sampled_from(["completion", "all"]))
def test_truncating_keeps_the_answer_whatever_is_supervised(prompt: int, answer: int, limit: int, supervise: str) -> None:
    (row,) = rows((prompt, answer))
    if supervise == "all":
        row = Row(row.input_ids, (True,) * (prompt + answer), prompt, "")
    ((cut,), _) = fit([row], limit, "truncate")
    assert len(cut.input_ids) == len(cut.supervised) == min(limit, prompt + answer)
    assert cut.input_ids[cut.prompt :] == row.input_ids[prompt:][: len(cut.input_ids) - cut.prompt]
    assert (cut.input_ids[-1] == prompt + answer - 1) == (answer <= limit)
