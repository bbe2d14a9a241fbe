"""The resolved recipe: every value spelt out, each with its origin, and itself a recipe that reproduces the run from anywhere."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.recipe import shape
from workbench.recipe.document import shown
from workbench.recipe.emit import scalar
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Recipe

WIDEST = 72  # column beyond which a long value pushes its own comment to the right, and no other's


def dump(loaded: Loaded) -> str:
    """The whole recipe as YAML, with the origin of every value in a comment: `default`, `recipe.yaml:3` or `--set train.rank`.

    Local paths are printed absolute, since the text may be kept anywhere.
    """
    lines = list(_lines(anchored(loaded).model_dump(), ()))
    width = max(len(text) for text, _ in lines if len(text) <= WIDEST)
    return "".join(f"{text}\n" if path is None else f"{text:<{width}}  # {shown(loaded.origins[path].label)}\n" for text, path in lines)


def anchored(loaded: Loaded) -> Recipe:
    """The recipe with every local path made absolute."""
    return Recipe.model_validate(_anchored(loaded.recipe.model_dump(), shape.RECIPE, loaded.base))


def _anchored(value: Any, wanted: shape.Shape, base: Path) -> Any:
    if isinstance(value, dict) and wanted.sections:  # other keys than a section's are somebody else's
        children = wanted.keys()
        return {key: _anchored(item, children[key], base) for key, item in value.items()}
    if isinstance(value, list) and wanted.item is not None:
        return [_anchored(item, wanted.item, base) for item in value]
    if wanted.is_path and value is not None and "://" not in value:
        return str(base / os.path.expanduser(value))  # noqa: PTH111 (that of pathlib raises for a user who does not exist)
    if wanted.is_function and value is not None:
        module, _, name = value.rpartition(":")
        files = [base / file for file in (module, module.replace(".", "/") + ".py")]
        return next((f"{file}:{name}" for file in files if file.is_file()), value)  # else an installed module
    return value


def _lines(value: Any, path: shape.Path) -> Iterator[tuple[str, shape.Path | None]]:
    """Lines of block YAML for a section or a list, each with the path of the value that it ends with, if any."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for step, item in pairs:
        inner = (*path, step)
        head = f"{scalar(step)}:" if isinstance(step, str) else "-"
        if not item or not isinstance(item, (dict, list)):
            yield f"{head} {'[]' if isinstance(item, list) else scalar(item)}", inner
        elif isinstance(step, str):
            yield head, None
            yield from ((f"  {text}", leaf) for text, leaf in _lines(item, inner))
        else:
            # The first key of an element stands on the line of its dash.
            for index, (text, leaf) in enumerate(_lines(item, inner)):
                yield ("  " if index else "- ") + text, leaf
