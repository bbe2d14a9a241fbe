"""Which texts the rounding is fitted to: a varied part of the task's own training rows, with general text mixed in where wanted.

What a model rarely sees it may forget first, so the rows are spread evenly over answers and lengths instead of drawn at random
(on how much the choice matters: Williams & Aletras 2024, arXiv:2311.09755).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.data.example import Example, content_key
from workbench.errors import DataError
from workbench.recipe.schema import Calibration

#: Answers that occur in fewer groups than this share of the rows are a set of classes; others are texts of their own.
FEWEST_PER_ANSWER = 4
#: Shortest prompt, in characters, whose appearance inside a general text counts as an overlap.
TELLING = 20


def spread(examples: Sequence[Example], lengths: Sequence[int], rows: int, seed: int) -> list[int]:
    """Numbers of the examples to take: as many for each answer as there are, and for each answer evenly over the lengths.

    Args:
        lengths: tokens of each example.
        rows: how many to take; all, where there are fewer.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    answers = {example.references[0] for example in examples}
    classes = len(answers) * FEWEST_PER_ANSWER <= min(rows, len(examples))
    for index, example in enumerate(examples):
        groups[example.references[0] if classes else ""].append(index)
    taken: list[int] = []
    left = min(rows, len(examples))
    for number, group in enumerate(sorted(groups.values(), key=len)):  # what a small group lacks, larger ones make up for
        share = min(len(group), left // (len(groups) - number))
        ordered = sorted(group, key=lambda index: (lengths[index], examples[index].id))
        for place in range(share):  # one of each stretch of the lengths; which one, a hash decides
            stretch = ordered[place * len(ordered) // share : (place + 1) * len(ordered) // share]
            taken.append(min(stretch, key=lambda index: _shuffle(examples[index].id, seed)))
        left -= share
    return sorted(taken)


def general_texts(path: Path, rows: int, seed: int) -> list[str]:
    """Texts of a file: .txt has one on each line, .jsonl has one in each row's field `text`.

    Args:
        rows: how many to take; which ones, a hash decides.

    Raises:
        DataError: the file has another form, or fewer texts.
    """
    form = "give a .txt file with one text on each line, or a .jsonl file with a field `text` in each row"
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError("no file of general texts goes by such a name", where=str(path), fix=form)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also break at characters that JSON texts may hold
    except (OSError, ValueError) as error:
        raise DataError(f"no general text can be read: {error}", where=str(path), fix=form) from error
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"] if path.suffix == ".jsonl" else line.strip()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"is no text: {type(error).__name__}: {error}", where=f"{path}, line {number}", fix=form) from error
        if not isinstance(text, str) or not text.strip():
            raise DataError("is empty or no text", where=f"{path}, line {number}", fix="remove it")
        texts.append(text)
    if len(texts) < rows:
        raise DataError(f"{len(texts)} general texts, and {rows} are wanted", where=str(path), fix="lower calibration.general_share")
    return sorted(texts, key=lambda text: _shuffle(text, seed))[:rows]


def refuse_overlap(texts: Iterable[str], held_out: Sequence[Example], where: str) -> None:
    """Rounding fitted to what will be measured would look better than it is.

    Raises:
        DataError: a held-out prompt is one of the texts, or stands inside one.
    """
    prompts = {content_key(asked): example for example in held_out for asked in _asked(example)}
    words = {_plain(asked): example for example in held_out for asked in _asked(example) if len(_plain(asked)) >= TELLING}
    found = 0
    first = ""
    for text in texts:
        plain = _plain(text)
        hit = prompts.get(content_key(text)) or next((example for prompt, example in words.items() if prompt in plain), None)
        if hit is not None:
            found += 1
            first = first or hit.where
    if found:
        what = f"{found} calibration texts hold prompts of held-out examples (the first: {first})"
        raise DataError(what, where=where, fix="take them out: what is calibrated on cannot be measured on")


def refuse_too_few(tokens: int, width: int, where: str) -> None:
    """Fewer tokens than a layer has inputs leave its Hessian singular: most directions of the weights would be rounded blindly.

    Raises:
        DataError: with the numbers.
    """
    if tokens < width:
        what = f"the calibration texts have {tokens} tokens, and a layer of the model has {width} inputs: too few to fit its rounding to"
        raise DataError(what, where=where, fix="raise calibration.rows, give more training rows, or mix in general text")


def settings_of(calibration: Calibration) -> tuple[int, int]:
    """Task rows and general texts that are wanted."""
    general = round(calibration.rows * calibration.general_share) if calibration.general is not None else 0
    return calibration.rows - general, general


def _asked(example: Example) -> list[str]:
    """The prompt; of a conversation, what the user says in it."""
    if isinstance(example.prompt, str):
        return [example.prompt]
    return [message["content"] for message in example.prompt if message["role"] == "user" and isinstance(message["content"], str)]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _shuffle(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()
