"""Did you mean ...?"""

from __future__ import annotations

import re
from collections.abc import Iterable

from workbench.recipe.shape import places


def near(word: str, options: Iterable[str], *, most: int = 3) -> list[str]:
    """The options that `word` was probably meant to be, best first; at most `most`, often none.

    An option is near when few single edits lead to it (one up to five characters, then one more per three), upper case, `-`
    and `_` aside, or when all the words of one are among the words of the other (`lora_rank`, `rank`).
    """
    plain = _plain(word)
    scored = [(_edits(plain, _plain(option)), option) for option in dict.fromkeys(options)]
    close = sorted(pair for pair in scored if pair[0] <= max(1, min(len(plain), len(_plain(pair[1]))) // 3))
    words = _words(word)
    akin = [option for _, option in scored if words and (_words(option) <= words or words <= _words(option))]
    return list(dict.fromkeys([option for _, option in close] + akin))[:most]


def did_you_mean(options: list[str]) -> str:
    """The question, or an empty text when there is nothing to suggest."""
    return f"did you mean {either(options)}?" if options else ""


def either(options: Iterable[str], last: str = "or") -> str:
    """`a`, `b` or `c`, each in backquotes."""
    *most, end = (f"`{option}`" for option in options)
    return f"{', '.join(most)} {last} {end}" if most else end


def sections_with(key: str) -> list[str]:
    """The dotted paths of the sections that have this very key, as `shape.places` writes them; the recipe itself is not one."""
    owners = (path.rpartition(".") for path, _ in places())
    return [owner for owner, _, name in owners if name == key and owner]


def _plain(word: str) -> str:
    return re.sub(r"[-_\s]", "", word).casefold()


def _words(word: str) -> set[str]:
    return {part.casefold() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", word)}


def _edits(first: str, second: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment distance)."""
    if abs(len(first) - len(second)) > max(len(first), len(second)) // 2 + 1:
        return max(len(first), len(second))
    before, row = list[int](), list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(second, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
