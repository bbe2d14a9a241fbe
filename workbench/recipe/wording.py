"""What is said about a recipe that does not fit the schema, in words for the person who types it.

Everything is worded from the schema's shape and from what was written; pydantic's own messages are not used, so none can leak.
"""

from __future__ import annotations

import math
import operator
import re
import shlex
from typing import Any

from workbench.recipe.document import EMPTY, Node, resolve, shown
from workbench.recipe.emit import flow, quoted, scalar
from workbench.recipe.schema import ENV_NAME, NAME, SUFFIX, URL, Section
from workbench.recipe.secrets import redact
from workbench.recipe.shape import RECIPE, Path, Shape, dotted, keys
from workbench.recipe.suggest import did_you_mean, either, near, sections_with

Words = tuple[str, str]  # what, fix

#: What a pattern of the schema asks for.
PATTERNS = {
    NAME: "at most 64 lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
    URL: "an address such as http://localhost:8000/v1, without a name, a query or a fragment",
    SUFFIX: "at most 40 letters, digits, `_` and `-`",
    ENV_NAME: "the name of an environment variable (upper-case letters, digits and `_`)",
}
_SCALARS: dict[type | None, tuple[str, Any]] = {
    str: ("a text", "..."),
    int: ("a whole number", 8),
    float: ("a number", 0.1),
    bool: ("true or false", True),
    dict: ("a section of keys and values", {}),
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_COMPARE = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
_TRUTH = {"yes": True, "on": True, "y": True, "1": True, "true": True, "no": False, "off": False, "n": False, "0": False, "false": False}


def unknown_key(path: Path, section: Shape) -> Words:
    """A key that its section does not have."""
    key, where = str(path[-1]), dotted(path[:-1])
    what = f"unknown key `{shown(key)}`" + (f" in `{where}`" if where else "")
    owners = [owner for owner in sections_with(key) if owner != where]
    fixes = []
    if owners:
        fixes.append(f"`{key}` belongs to {either(owners)}")
    elif not where and key in keys():
        parent, _, last = key.rpartition(".")
        return what, f"write `{last}` indented under `{parent}`"
    meant = near(key, section.keys())
    if meant:
        fixes.append(did_you_mean(meant))
    if not fixes:
        elsewhere = [f"{name}.{child}" for name, shape in RECIPE.keys().items() for child in near(key, shape.keys(), most=1)]
        elsewhere += [] if not where else near(key, RECIPE.keys(), most=1)
        fixes.append(did_you_mean(elsewhere[:3]) or f"remove it; the keys here are {either(section.keys(), 'and')}")
    return what, "; or ".join(fixes)


def missing_key(path: Path, shape: Shape) -> Words:
    """A key that has to be there and is not."""
    where = f" to `{dotted(path[:-1])}`" if len(path) > 1 else ""
    return f"`{dotted(path)}` is missing", f"add it{where}, for example `{path[-1]}: {flow(example(shape))}`"


def wrong_value(path: Path, shape: Shape, node: Node) -> Words:
    """A value that is of the wrong type, out of range or not among the choices."""
    name = dotted(path)
    if node.value is EMPTY:
        return f"`{name}` has no value", _fix_empty(path, shape, node)
    # A value in the place of an environment variable's name may well be the secret itself.
    is_text = "another text" if shape.pattern == ENV_NAME else given(node)
    return f"`{name}` must be {wanted(shape)}, but is {is_text}", _fix(path, shape, node)


def wanted(shape: Shape) -> str:
    """What may stand here: "a whole number above 0"."""
    kinds = []
    if shape.choices:
        kinds.append(either(map(scalar, shape.choices)) if len(shape.choices) == 1 else f"one of {either(map(scalar, shape.choices))}")
    if shape.scalar is not None:
        kinds.append(_scalar_wanted(shape))
    if shape.sections:
        kinds.append("a section of keys and values")
    if shape.item is not None:
        what = "sections" if shape.item.sections else "texts"
        kinds.append(f"a list of {f'at least {shape.least} ' if shape.least else ''}{what}")
    return " or ".join(kinds)


def _scalar_wanted(shape: Shape) -> str:
    if shape.pattern is not None:
        return PATTERNS[shape.pattern]
    bounds = " and ".join(
        f"{_BOUNDS[name]} {number:g}" if abs(number) < 1e5 else f"{_BOUNDS[name]} {number}" for name, number in shape.bounds
    )
    if shape.scalar is str and shape.least:
        return "a text that is not empty"
    return f"{_SCALARS[shape.scalar][0]} {bounds}".rstrip()


def given(node: Node) -> str:
    """What was written: "the text 'abc'"."""
    value = node.value
    if isinstance(value, dict):
        return "a section of keys and values"
    if isinstance(value, tuple):
        return f"a list of {len(value)} element{'' if len(value) == 1 else 's'}"
    if isinstance(value, str):
        return f"the text {shown(redact(quoted(value)))}" if value else "an empty text"
    return f"the number {node.source}" if not isinstance(value, bool) and value is not None else f"`{node.source}`"


def example(shape: Shape) -> Any:
    """A value that may stand here: the default, else the schema's example, else any of the type."""
    field = shape.field
    if field is not None and not field.is_required() and field.default not in (None, [], {}) and not isinstance(field.default, Section):
        return field.default
    if field is not None and field.examples:
        return field.examples[0]
    if shape.choices:
        return shape.choices[0]
    if shape.item is not None:
        return [example(shape.item)] * max(1, shape.least)
    if shape.sections:
        section = Shape(sections=shape.sections[:1])
        return {name: example(child) for name, child in section.keys().items() if name in section.required()}
    return _SCALARS[shape.scalar][1]


def _line(path: Path, value: Any, node: Node) -> str:
    """How to give a key a value where `node` was given: a line of YAML, a list's element, or a `--set`; without secrets."""
    if node.origin.kind == "override":
        return redact(f"--set {shlex.quote(f'{dotted(path)}={flow(value)}')}")
    return redact(flow(value) if isinstance(path[-1], int) else f"{path[-1]}: {flow(value)}")


def _fix_empty(path: Path, shape: Shape, node: Node) -> str:
    removable = not isinstance(path[-1], int) and shape.field is not None and not shape.field.is_required()
    if shape.sections and not any(shape.required()):
        unset = f"`{_line(path, None, node)}` to leave it unset" if shape.optional else "remove it"
        return f"write `{_line(path, {}, node)}` to take every default, or {unset}"
    return f"write a value, for example `{_line(path, example(shape), node)}`{', or remove it' if removable else ''}"


def _fix(path: Path, shape: Shape, node: Node) -> str:
    if not path:
        return "begin with `name: my-task` on a line of its own"
    if shape.is_text and shape.pattern is None and node.source and not isinstance(node.value, str):
        return f"quote it: {_line(path, node.source, node) if node.origin.kind == 'override' else shown(redact(quoted(node.source)))}"
    written = node.value if isinstance(node.value, str) else node.source
    known = _meant_choice(shape, node) or _meant_number(shape, node)
    close = [] if known else near(written, (choice for choice in shape.choices if isinstance(choice, str)))
    if close:
        return did_you_mean(close)
    known = known or _meant_list(shape, node)
    return f"write `{_line(path, known[0], node)}`" if known else f"write for example `{_line(path, example(shape), node)}`"


# Each of these gives the value that was meant, in a list of one; an empty list where that cannot be told.


def _meant_choice(shape: Shape, node: Node) -> list[Any]:
    """A choice in quotes that it should not have, or without those that it needs."""
    written = node.value if isinstance(node.value, str) else node.source
    return [choice for choice in shape.choices if str(choice) == written][:1]


def _meant_number(shape: Shape, node: Node) -> list[Any]:
    """A number or a truth value that was written as something else."""
    written = node.value if isinstance(node.value, str) else node.source
    if shape.scalar is bool and written.casefold() in _TRUTH:
        return [_TRUTH[written.casefold()]]
    if shape.scalar is int and isinstance(node.value, float) and node.value.is_integer():
        return [int(node.value)] if _within(shape, int(node.value)) else []
    if shape.scalar in (int, float) and isinstance(node.value, str):
        number = resolve(re.sub(r"[_,\s]", "", node.value))
        if type(number) in (int, shape.scalar) and _within(shape, number):
            return [number]
    return []


def _within(shape: Shape, number: float) -> bool:
    return math.isfinite(number) and all(_COMPARE[name](number, bound) for name, bound in shape.bounds)


def _meant_list(shape: Shape, node: Node) -> list[Any]:
    """One text where a list of texts is wanted."""
    alone = shape.item is not None and shape.item.is_text and not isinstance(node.value, (dict, tuple)) and node.value is not None
    return [[node.source]] if alone and shape.least < 2 else []
