"""Examples -> tokens: the one place that decides what the model sees, in training, in evaluation and in the preview.

A prompt's tokens are computed once and the same way everywhere; a training row is those tokens followed by the answer's. So
what the model is asked at inference is, token for token, the beginning of what it was trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workbench.data.example import Example, Message
from workbench.digest import digest
from workbench.errors import DataError
from workbench.recipe.schema import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Supervise = Literal["completion", "assistant", "all"]

#: Label of a token that carries no loss (PyTorch's `ignore_index`).
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One training row.

    Attributes:
        input_ids: token ids of prompt and answer, length T.
        supervised: length T; whether the model is trained to predict that token.
        prompt: how many of the tokens come before the answer.
        where: file and row it came from.
    """

    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    prompt: int
    where: str

    @property
    def labels(self) -> list[int]:
        """Length T: the token id where it is supervised, else -100. The first token has nothing to be predicted from."""
        return [
            token if wanted and index else IGNORED
            for index, (token, wanted) in enumerate(zip(self.input_ids, self.supervised, strict=True))
        ]


class Renderer:
    """Renders examples with one tokenizer for one task.

    Args:
        tokenizer: its chat template is used for messages, and for text when the task says `chat: true`.
        task: `task.chat` decides between the chat template and raw text; unset, messages take the template and text does not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
        self.tokenizer, self.task = tokenizer, task
        self.eos_ids = {tokenizer.eos_token_id}

    def prompt_ids(self, example: Example) -> list[int]:
        """Token ids of everything before the answer."""
        if not self._is_chat(example):
            return self._raw_prompt_ids(example.prompt if isinstance(example.prompt, str) else _plain(example))
        return self._tokens(self._template(self._messages(example), example, add_generation_prompt=True))

    def answer_ids(self, example: Example, answer: str | None = None) -> list[int]:
        """Token ids of the answer up to and including the end-of-sequence token.

        Args:
            answer: text to render in place of the example's own first reference.

        Raises:
            DataError: the answer spells the end-of-sequence token, or the chat template cannot render it.
        """
        self._refuse_end(example, example.references[0] if answer is None else answer)
        if not self._is_chat(example):
            return [*self._raw_answer_ids(example, example.references[0] if answer is None else answer), self.tokenizer.eos_token_id]
        given = {"role": "assistant", "content": answer} if answer is not None else example.answer
        message = given or {"role": "assistant", "content": example.references[0]}
        return self._between(self._messages(example), message, example)

    def label_ids(self, example: Example, label: str) -> list[int]:
        """Token ids of a label exactly as an answer would be rendered, without the end-of-sequence token."""
        return [token for token in self.answer_ids(example, label) if token not in self.eos_ids]

    def row(self, example: Example, supervise: Supervise) -> Row:
        """The training row of an example.

        Args:
            supervise: the last answer, every assistant turn of the conversation, or every token.

        Raises:
            DataError: the chat template does not extend a conversation turn by turn, so no token could be attributed.
        """
        prompt, answer = self.prompt_ids(example), self.answer_ids(example)
        supervised = [supervise == "all"] * len(prompt) + [True] * len(answer)
        if supervise == "assistant" and self._is_chat(example):
            for start, end in self._assistant_spans(example):
                supervised[start:end] = [True] * (end - start)
        return Row(tuple(prompt + answer), tuple(supervised), len(prompt), example.where)

    @property
    def fingerprint(self) -> str:
        """Digest (64 hex digits) of what decides the rendering: chat template, task, and the tokenizer's behaviour on a probe text."""
        probe = "Rendering probe: 0123 äß東京 \n\t<|im_start|> {x: [1, 2]}"
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return digest([self.tokenizer.chat_template, self.task.chat, self.task.system, special, self.tokenizer(probe)["input_ids"]])

    def _refuse_end(self, example: Example, answer: str) -> None:
        """Text that spells the end-of-sequence token becomes that token: whatever follows it would be lost without a word."""
        if str(self.tokenizer.eos_token) in answer:
            raise DataError(
                f"the answer contains {self.tokenizer.eos_token}, which ends a sequence for this model",
                where=example.where,
                fix="remove it from the row",
            )

    def _is_chat(self, example: Example) -> bool:
        if self.task.chat is not None:
            return self.task.chat
        return not isinstance(example.prompt, str)

    def _messages(self, example: Example) -> list[Message]:
        if not isinstance(example.prompt, str):
            return list(example.prompt)
        system = [{"role": "system", "content": self.task.system}] if self.task.system is not None else []
        return [*system, {"role": "user", "content": example.prompt}]

    def _template(self, messages: Sequence[Message], example: Example, *, add_generation_prompt: bool = False) -> str:
        if self.tokenizer.chat_template is None:
            raise DataError(
                "the row needs a chat template, but the model has none",
                where=example.where,
                fix="set model.chat_template to a Jinja file, or task.prompt to a plain template",
            )
        options: dict[str, Any] = {"tools": [*example.tools]} if example.tools else {}
        try:
            text = self.tokenizer.apply_chat_template(
                [_for_template(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except Exception as error:  # a template is a program of the model's author: jinja2 lets any exception through
            raise DataError(
                f"the chat template refuses the row: {error}", where=example.where, fix="change the row, or set model.chat_template"
            ) from error
        return str(text)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _raw_prompt_ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text)["input_ids"])  # with the beginning-of-sequence token of models that have one
        return ids[:-1] if ids and ids[-1] in self.eos_ids else ids

    def _raw_answer_ids(self, example: Example, answer: str) -> list[int]:
        prompt = example.prompt if isinstance(example.prompt, str) else _plain(example)
        space = "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "
        return self._tokens(space + answer)

    def _between(self, before: list[Message], answer: Message, example: Example) -> list[int]:
        """Tokens that the template writes for `answer` after the generation prompt, up to the first end-of-sequence token."""
        start = self._template(before, example, add_generation_prompt=True)
        whole = self._template([*before, answer], example)
        if not whole.startswith(start):
            raise DataError(
                "the chat template renders the prompt differently once the answer follows: training and inference would see other tokens",
                where=example.where,
                fix="set model.chat_template to one whose generation prompt is how an assistant turn begins",
            )
        tokens = self._tokens(whole[len(start) :])
        ends = [index for index, token in enumerate(tokens) if token in self.eos_ids]
        if not ends:  # a template without an end of turn: without this token the model would learn never to stop
            return [*tokens, self.tokenizer.eos_token_id]
        return tokens[: ends[0] + 1]

    def _assistant_spans(self, example: Example) -> list[tuple[int, int]]:
        """[start, end) token positions of the earlier assistant turns, inside the prompt's tokens."""
        messages, prompt, spans = self._messages(example), self.prompt_ids(example), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("weight") == 0:
                continue
            start = self._tokens(self._template(messages[:index], example, add_generation_prompt=True))
            turn = self._between(messages[:index], message, example)
            if prompt[: len(start)] != start or prompt[len(start) : len(start) + len(turn)] != turn:
                raise DataError(
                    "the chat template rewrites earlier turns, so `loss: assistant` cannot tell which tokens they are",
                    where=example.where,
                    fix="use `loss: completion`",
                )
            spans.append((len(start), len(start) + len(turn)))
        return spans


def quantile(lengths: Sequence[int], share: float) -> int:
    """The smallest length that at least `share` of the lengths do not exceed."""
    ordered = sorted(lengths)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def fit(rows: Sequence[Row], max_length: int, overflow: str, *, key: str = "train.max_length") -> tuple[list[Row], int]:
    """Apply `train.overflow` to rows longer than `max_length` tokens.

    `truncate` cuts the beginning of the prompt and keeps the answer; an answer that is longer by itself loses its end.

    Returns:
        The rows to train on, and how many were dropped or truncated.

    Raises:
        DataError: some are longer and the recipe says `refuse`, with the number, the longest and where it is.
    """
    long = [row for row in rows if len(row.input_ids) > max_length]
    if not long:
        return list(rows), 0
    if overflow == "refuse":
        worst = max(long, key=lambda row: len(row.input_ids))
        raise DataError(
            f"{len(long)} of {len(rows)} rows are longer than {key} {max_length}; the longest has {len(worst.input_ids)} tokens",
            where=worst.where,
            fix=f"raise {key} to {len(worst.input_ids)}, or choose train.overflow: drop or truncate",
        )
    keep: Callable[[Row], Row | None] = (lambda row: None) if overflow == "drop" else (lambda row: _truncate(row, max_length))
    kept = [row if len(row.input_ids) <= max_length else keep(row) for row in rows]
    return [row for row in kept if row is not None], len(long)


def _truncate(row: Row, length: int) -> Row:
    start = min(row.prompt, len(row.input_ids) - length)
    cut = slice(start, start + length)
    return Row(row.input_ids[cut], row.supervised[cut], row.prompt - start, row.where)


def _for_template(message: Message) -> Message:
    """Chat templates want the arguments of a tool call as an object; OpenAI's form has them as JSON text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{**call, "function": {**call["function"], "arguments": _parsed(call["function"])}} for call in calls]}


def _parsed(function: dict[str, Any]) -> Any:
    arguments = function.get("arguments", {})
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments  # the template shows it as it is


def _plain(example: Example) -> str:
    """Messages as raw text, for `chat: false` over chat rows: the contents, one paragraph each."""
    messages = [message for message in example.prompt if isinstance(message, dict)]
    texts = [message.get("content") or (json.dumps(message["tool_calls"]) if "tool_calls" in message else "") for message in messages]
    return "".join(f"{text}\n\n" for text in texts if text)
