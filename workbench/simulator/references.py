"""The file of right answers that the simulated model knows.

One row a prompt, in JSONL, CSV or Parquet:

| field | meaning |
|---|---|
| prompt | the content of the last user message; chat messages (a list, or its JSON text) are read as well |
| reference | the right answer |
| wrong | optional: a list of wrong answers, or its JSON text; default: the other references of the file |
| difficulty | optional: 0 (easy) to 1 (hard); default: a number drawn from the prompt |

Other fields are ignored, so an outcomes table with `prompt` and `reference` is such a file; rows that repeat a prompt must agree.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.data.problems import Problems, excerpt
from workbench.data.rows import rows
from workbench.data.values import field, text
from workbench.errors import DataError
from workbench.simulator import chance

#: The most wrong answers that one prompt can get.
MOST_WRONG = 19


@dataclass(frozen=True)
class Reference:
    """What is right and wrong for one prompt.

    Attributes:
        right: the reference.
        wrong: at least one other text, unless the file knows none.
        difficulty: 0 to 1.
    """

    right: str
    wrong: tuple[str, ...]
    difficulty: float


def normalised(prompt: str) -> str:
    """The form in which prompts are compared: NFC, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def last_user(messages: list[Mapping[str, Any]]) -> str:
    """The text of the last user message; of the last message where there is none from a user."""
    return content_text(next((one for one in reversed(messages) if one.get("role") == "user"), messages[-1]).get("content"))


def content_text(content: Any) -> str:
    """A message's content as text: of a list of parts, the text parts as they are and the others as JSON."""
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in content)
        return "".join(text(part) for part in parts)
    return "" if content is None else text(content)


def read(path: Path, seed: int) -> dict[str, Reference]:
    """Read a file of references.

    Returns:
        References by normalised prompt.

    Raises:
        DataError: the file cannot be read or holds no row; a row lacks its prompt or reference, its difficulty is no number from 0 to
            1, or it contradicts an earlier row.
    """
    problems, found, own = Problems(path), dict[str, Reference](), dict[str, tuple[str, ...]]()
    for number, row in rows(path, problems):
        try:
            prompt = normalised(_prompt(field(row, "prompt")))
            reference = Reference(text(field(row, "reference")), _wrong(row.get("wrong")), _difficulty(row.get("difficulty"), prompt, seed))
            if found.setdefault(prompt, reference) != reference:
                raise DataError(f"another row answers the same prompt {excerpt(prompt)} differently", fix="keep one of the two")
        except DataError as problem:
            problems.add(number, problem)
    problems.refuse()
    if not found:
        raise DataError("it holds no row", where=str(path), fix="use a file with prompts and references")
    answers = sorted({reference.right for reference in found.values()})
    own = {prompt: tuple(one for one in reference.wrong if one != reference.right) for prompt, reference in found.items()}
    return {
        prompt: replace(reference, wrong=own[prompt] or _others(answers, reference.right, prompt, seed))
        for prompt, reference in found.items()
    }


def _others(answers: list[str], right: str, prompt: str, seed: int) -> tuple[str, ...]:
    """At most `MOST_WRONG` other references, beginning somewhere in their sorted order."""
    start = chance.pick(len(answers), seed, "others", prompt)
    some = (answers[start:] + answers[:start])[: MOST_WRONG + 1]
    return tuple(answer for answer in some if answer != right)[:MOST_WRONG]


def _prompt(value: Any) -> str:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            messages = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return last_user(messages) if _are_messages(messages) else value
    return last_user(value) if _are_messages(value) else text(value)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


def _wrong(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"field 'wrong' is {excerpt(value)}, not a list", fix='write ["one", "another"]') from error
    if value in (None, ""):
        return ()
    if not isinstance(value, list) or not value or len(value) > MOST_WRONG:
        raise DataError(f"field 'wrong' is {excerpt(value)}", fix=f"write a list of 1 to {MOST_WRONG} wrong answers")
    return tuple(dict.fromkeys(map(text, value)))


def _difficulty(value: Any, prompt: str, seed: int) -> float:
    if value in (None, ""):
        return chance.uniform(seed, "difficulty", prompt)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 1:
        raise DataError(f"field 'difficulty' is {excerpt(value)}", fix="write a number from 0 to 1, or leave it out")
    return number
