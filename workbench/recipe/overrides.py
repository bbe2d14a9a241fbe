"""`--set key.path=value`: typed like the file, and as strict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workbench.recipe import secrets
from workbench.recipe.document import EMPTY, Entry, Node, Origin, Problem, SyntaxFault, parse, shown
from workbench.recipe.shape import RECIPE, Path, Shape, dotted
from workbench.recipe.wording import unknown_key


class _Refused(Exception):
    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__()


def apply(tree: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """The tree with every override put in, in order, and what is wrong with those that could not be."""
    problems: list[Problem] = []
    for number, text in enumerate(overrides, 1):
        origin = _origin(number, text)
        try:
            tree = _apply(tree, text, origin, problems)
        except _Refused as refused:
            problems.append(Problem(origin, refused.what, refused.fix))
        except SyntaxFault as fault:
            problems += fault.problems
    return tree, problems


def secrets_in(overrides: Sequence[str]) -> list[Problem]:
    """A problem for every override that looks like it carries a secret."""
    found = [_origin(number, text) for number, text in enumerate(overrides, 1) if secrets.find(text)]
    return [Problem(origin, secrets.WHAT, secrets.FIX) for origin in found]


def _origin(number: int, text: str) -> Origin:
    key = text.partition("=")[0].strip()
    return Origin("override", f"--set {shown(secrets.redact(text))}", f"--set {key}", number)


def _apply(tree: Node, text: str, origin: Origin, problems: list[Problem]) -> Node:
    key, equals, value = text.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise _Refused("not of the form key.path=value", "write for example --set train.rank=8")
    wanted = _wanted(RECIPE, steps)
    return _put(tree, RECIPE, steps, _value(value, wanted, origin, problems), ())


def _wanted(shape: Shape | None, steps: list[str]) -> Shape | None:
    """The shape of what a path leads to; None when it leads nowhere."""
    for step in steps:
        if shape is None:
            return None
        shape = shape.item if shape.item is not None and step.isdecimal() else shape.keys().get(step)
    return shape


def _value(text: str, wanted: Shape | None, origin: Origin, problems: list[Problem]) -> Node:
    """The node for an override's value: a YAML scalar or flow collection.

    Where only a text is wanted, whatever is not plainly something else is that text as it stands: `{input}: ` needs no quotes.
    """
    as_is = Node(text, origin, source=text)
    free = wanted is not None and wanted.is_text and text.strip() != ""
    try:
        node, faults = parse(text, lambda *_: origin)
    except SyntaxFault:
        if free:
            return as_is
        raise
    node = Node(EMPTY, origin) if node is None else node
    if free and not node.quoted and (faults or isinstance(node.value, (str, dict, tuple)) or node.value is EMPTY):
        return as_is
    if isinstance(node.value, (dict, tuple)) and not node.source:
        raise _Refused("a list or section on the command line is written in brackets", 'write for example --set task.labels=\'["a", "b"]\'')
    problems += faults
    return node


def _put(node: Node, shape: Shape, steps: list[str], value: Node, done: Path) -> Node:
    """A copy of `node` in which `value` stands at `steps`; sections and list elements on the way are made where there are none."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if shape.item is not None and not shape.sections:
        return _put_element(node, shape.item, steps, value, done)
    if not shape.sections:
        raise _Refused(f"`{dotted(done)}` holds a value, not a section: it has no key `{shown(step)}`", f"write --set {dotted(done)}=...")
    child = shape.keys().get(step)
    if child is None:
        what, fix = unknown_key((*done, step), shape)
        raise _Refused(what, fix)
    if node.value is None or node.value is EMPTY:
        node = Node({}, value.origin)
    if not isinstance(node.value, dict):
        return node  # what the file has here is wrong, and is reported as such
    entry = node.value.get(step, Entry(value.origin, Node(EMPTY, value.origin)))
    changed = Entry(entry.at if rest else value.origin, _put(entry.node, child, rest, value, (*done, step)))
    return replace(node, value={**node.value, step: changed})


def _put_element(node: Node, item: Shape, steps: list[str], value: Node, done: Path) -> Node:
    items = node.value if isinstance(node.value, tuple) else ()
    step, name = steps[0], dotted(done)
    if not step.isdecimal():
        raise _Refused(f"`{name}` is a list; `{shown(step)}` is not the number of an element", f"count from 0: --set {name}.0...")
    index = int(step) if len(step) < 6 else len(items) + 1
    if index > len(items):
        count = f"{len(items)} element{'' if len(items) == 1 else 's'}"
        raise _Refused(
            f"`{name}` has {count}, so there is no number {shown(step)}", f"count from 0; {name}.{len(items)} adds one at the end"
        )
    child = items[index] if index < len(items) else Node(EMPTY, value.origin)
    changed = _put(child, item, steps[1:], value, (*done, index))
    start = node if isinstance(node.value, tuple) else Node((), value.origin)
    return replace(start, value=(*items[:index], changed, *items[index + 1 :]))
