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
        ordered = sorted(group, key=lambda index: (lengths[index], _shuffle(examples[index].id, seed)))
        taken += [ordered[int((place + 0.5) * len(ordered) / share)] for place in range(share)]
        left -= share
    return sorted(taken)


def general_texts(path: Path, rows: int, seed: int) -> list[str]:
    """Texts of a file: .txt has one on each line, .jsonl has one in each row's field `text`.

    Args:
        rows: how many to take; which ones, a hash decides.

    Raises:
        DataError: the file has another form, or fewer texts.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
        bad = next((number for number, text in enumerate(texts, start=1) if not isinstance(text, str) or not text.strip()), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "give a .txt file with one text on each line, or a .jsonl file with a field `text` in each row"
        raise DataError(f"no general text can be read: {type(error).__name__}: {error}", where=str(path), fix=fix) from error
    if bad is not None:
        raise DataError(f"text {bad} is empty or no text", where=str(path), fix="remove it")
    if len(texts) < rows:
        raise DataError(f"{len(texts)} general texts, and {rows} are wanted", where=str(path), fix="lower calibration.general_share")
    return sorted(texts, key=lambda text: _shuffle(text, seed))[:rows]


def refuse_overlap(texts: Iterable[str], held_out: Sequence[Example], where: str) -> None:
    """Rounding fitted to what will be measured would look better than it is.

    Raises:
        DataError: a held-out prompt is one of the texts, or stands inside one.
    """
    prompts = {example.content_key: example for example in held_out}
    words = {_plain(example.prompt): example for example in held_out if isinstance(example.prompt, str) and len(example.prompt) >= TELLING}
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


def _plain(text: object) -> str:
    return " ".join(str(text).split()).casefold()


def _shuffle(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()
