"""Read a recipe: YAML and `--set` in, a typed `Recipe` and the origin of every value out, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workbench.errors import RecipeError, WorkbenchError
from workbench.recipe import overrides as command_line
from workbench.recipe import secrets, shape, wording
from workbench.recipe.document import DEFAULT, INVALID, Node, Origin, Problem, SyntaxFault, parse, position
from workbench.recipe.schema import InconsistentError, Recipe
from workbench.recipe.suggest import did_you_mean, near

LARGEST = 256 * 1024  # bytes


@dataclass(frozen=True)
class Loaded:
    """A valid recipe.

    Attributes:
        recipe: the typed recipe, defaults filled in. Its paths are as written: relative to the recipe's folder.
        origins: where each value comes from, by its path; an empty list and a null are values, a section is not.
        path: the file it was read from, as given.
        text: the file's text.
    """

    recipe: Recipe
    origins: dict[shape.Path, Origin]
    path: Path
    text: str

    @property
    def base(self) -> Path:
        """The folder that relative paths in the recipe start from."""
        return self.path.absolute().parent

    def file(self, text: str) -> Path:
        """The file that a path in the recipe names."""
        return self.base / os.path.expanduser(text)  # noqa: PTH111 - pathlib's raises for a user who does not exist

    def where(self, *path: str | int) -> str:
        """The place of a key in the file or on the command line; of a section, or where a default stands: its first written key."""
        while path:
            written = [origin for key, origin in self.origins.items() if key[: len(path)] == path and origin != DEFAULT]
            if written:
                return min(written, key=lambda origin: (origin.line, origin.column)).where
            path = path[:-1]
        return str(self.path)


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `key.path=value` texts of `--set`; a later one wins.

    Raises:
        RecipeError: with every problem found, those of the file in the order of its lines, then those of the overrides.
    """
    text = _text(path)
    found = [*_secrets(path, text), *command_line.secrets_in(overrides)]
    try:
        tree, faults = parse(text, lambda line, column: _origin(path, line, column))
    except SyntaxFault as fault:
        raise _refusal([*found, *fault.problems]) from fault
    found += faults
    if tree is None or not isinstance(tree.value, dict):
        raise _refusal(found if tree is not None and tree.value is INVALID else [*found, _no_sections(path, tree)])
    tree, faults = command_line.apply(tree, overrides)
    recipe, misfits = _validate(tree)
    found += faults + misfits
    if found or recipe is None:
        raise _refusal(found)
    return Loaded(recipe, origins(recipe, tree), path, text)


def origins(recipe: Recipe, tree: Node) -> dict[shape.Path, Origin]:
    """The origin of every value of the recipe; what the tree does not hold is a default."""
    found: dict[shape.Path, Origin] = {}

    def walk(path: shape.Path, value: Any, node: Node | None) -> None:
        if value and isinstance(value, dict):
            entries = node.value if node is not None and isinstance(node.value, dict) else {}
            for key, item in value.items():
                walk((*path, key), item, entries[key].node if key in entries else None)
        elif value and isinstance(value, list):
            for index, item in enumerate(value):
                walk((*path, index), item, node.value[index] if node is not None else None)
        else:
            found[path] = DEFAULT if node is None else node.origin

    walk((), recipe.model_dump(), tree)
    return found


def _text(path: Path) -> str:
    """The file's text, or a RecipeError about the file as a whole."""
    where = str(path)
    try:
        if path.is_dir():
            inside = sorted(file.name for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
            fix = f"name a file in it, such as {path / inside[0]}" if inside else "name a recipe file"
            raise RecipeError([WorkbenchError("this is a folder, not a recipe", where=where, fix=fix)])
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise RecipeError([WorkbenchError("no such file", where=where, fix=_close_files(path))]) from error
    except OSError as error:
        fix = "check the file's permissions and its name"
        raise RecipeError([WorkbenchError(f"cannot be read: {error.strerror}", where=where, fix=fix)]) from error
    if len(raw) > LARGEST:
        fix = "check the file's name; rows of data belong in a file of their own"
        raise RecipeError([WorkbenchError(f"over {LARGEST // 1024} KiB: this is not a recipe", where=where, fix=fix)])
    return _decoded(path, raw)


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        at = _origin(path, *position(before, len(before)))
        raise _refusal([Problem(at, "not UTF-8 text", "save the file as UTF-8, or check its name")]) from error


def _close_files(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml")]
    except (OSError, ValueError):
        return "check the path: its folder cannot be read"
    close = [str(path.parent / name) for name in near(path.name, names) or sorted(names)[:3]]
    return did_you_mean(close) or "check the path, or write a recipe with `workbench init`"


def _origin(path: Path, line: int, column: int) -> Origin:
    return Origin("file", f"{path}:{line}:{column}", f"{path.name}:{line}", line, column)


def _secrets(path: Path, text: str) -> list[Problem]:
    return [Problem(_origin(path, *position(text, offset)), secrets.WHAT, secrets.FIX) for offset in secrets.find(text)]


def _no_sections(path: Path, tree: Node | None) -> Problem:
    fix = "begin with `name: my-task`, `model:`, `data:` and `task:`, or write a recipe with `workbench init`"
    if tree is None:
        return Problem(_origin(path, 1, 1), "the recipe is empty", fix)
    return Problem(tree.origin, f"a recipe is a section of keys and values, but this is {wording.given(tree)}", fix)


def _refusal(problems: list[Problem]) -> RecipeError:
    """The error to raise: in the order of the lines, each problem once, no secret in it."""
    ordered = sorted(problems, key=lambda problem: (problem.origin.kind == "override", problem.origin.line, problem.origin.column))
    unique = dict.fromkeys((problem.origin.where, problem.what, problem.fix) for problem in ordered)
    errors = [WorkbenchError(_fit_to_print(what), where=_fit_to_print(where), fix=_fit_to_print(fix)) for where, what, fix in unique]
    return RecipeError(errors)


def _fit_to_print(text: str) -> str:
    """Without secrets, and with characters that no terminal shows as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in secrets.redact(text))


def _validate(tree: Node) -> tuple[Recipe | None, list[Problem]]:
    try:
        return Recipe.model_validate(tree.plain()), []
    except ValidationError as error:
        return None, _misfits(error.errors(include_url=False, include_input=False), tree)


@dataclass(frozen=True)
class _Place:
    """Where one of pydantic's errors points to."""

    path: shape.Path
    wanted: shape.Shape | None  # None: a key that its section does not have
    node: Node | None  # None: not written
    at: Origin  # of the key, of the element, or of the innermost section that was written
    section: shape.Shape  # the shape of what holds it
    arm: bool = False  # the error is about one alternative of several


def _misfits(errors: Sequence[Any], tree: Node) -> list[Problem]:
    placed = [(error, _locate(error["loc"], tree)) for error in errors]
    unknown = [place for _, place in placed if place.wanted is None]
    paths = [place.path for _, place in placed]
    found: list[Problem] = []
    for error, place in placed:
        if place.node is not None and _already_told(place.node):
            continue
        if error["type"] == "missing" and any(_meant(stranger, place) for stranger in unknown):
            continue
        # Of a list that may also be a word, only what is wrong inside the list is of interest.
        if place.arm and any(len(path) > len(place.path) and path[: len(place.path)] == place.path for path in paths):
            continue
        found += _worded(error, place)
    return found


def _already_told(node: Node) -> bool:
    return node.value is INVALID or (isinstance(node.value, str) and bool(secrets.find(node.value)))


def _meant(stranger: _Place, missing: _Place) -> bool:
    """Whether an unknown key is probably the missing one, misspelt."""
    return stranger.path[:-1] == missing.path[:-1] and missing.path[-1] in near(str(stranger.path[-1]), stranger.section.keys())


def _worded(error: Any, place: _Place) -> list[Problem]:
    if error["type"] == "value_error" and isinstance(error["ctx"]["error"], InconsistentError):
        entries = place.node.value if place.node is not None else {}
        faults = error["ctx"]["error"].faults
        return [Problem(entries[fault.key].at if fault.key in entries else place.at, fault.what, fault.fix) for fault in faults]
    if place.wanted is None:
        words = wording.unknown_key(place.path, place.section)
    elif error["type"].startswith("union_tag"):
        return _undecided(place, place.wanted)
    elif place.node is None:
        words = wording.missing_key(place.path, place.wanted)
    else:
        return [Problem(place.node.origin, *wording.wrong_value(place.path, place.wanted, place.node))]
    return [Problem(place.at, *words)]


def _undecided(place: _Place, wanted: shape.Shape) -> list[Problem]:
    """A section of several possible kinds whose deciding key names none of them; pydantic then looks at no other key."""
    keys, tag = wanted.keys(), str(wanted.tag)
    entries = place.node.value if place.node is not None else {}
    strangers = [key for key in entries if key not in keys]
    found = [Problem(entries[key].at, *wording.unknown_key((*place.path, key), wanted)) for key in strangers]
    if tag in entries:
        node = entries[tag].node
        if not _already_told(node):
            found.append(Problem(node.origin, *wording.wrong_value((*place.path, tag), keys[tag], node)))
    elif not any(tag in near(key, keys) for key in strangers):
        found.append(Problem(place.at, *wording.missing_key((*place.path, tag), keys[tag])))
    return found


def _locate(location: tuple[str | int, ...], tree: Node) -> _Place:
    """Follow an error's location through schema and tree; pydantic puts the name of an alternative of a union between the keys."""
    here = _Place((), shape.RECIPE, tree, tree.origin, shape.RECIPE)
    for step in location:
        wanted = here.wanted
        if wanted is None:
            break
        if wanted.is_union and not here.arm and isinstance(step, str):
            narrowed = [one for one in wanted.sections if wanted.tag and step in shape.section_keys(one)[wanted.tag].choices]
            # The shape of a union of a word and a list stays whole: that is what its messages speak of.
            here = replace(here, wanted=replace(wanted, sections=tuple(narrowed), tag=None) if narrowed else wanted, arm=not narrowed)
        else:
            here = _step(here, wanted, step)
    return here


def _step(here: _Place, wanted: shape.Shape, step: str | int) -> _Place:
    value = here.node.value if here.node is not None else None
    path = (*here.path, step)
    if isinstance(step, int):
        node = value[step] if isinstance(value, tuple) else None
        return _Place(path, wanted.item, node, node.origin if node else here.at, wanted)
    entry = value.get(step) if isinstance(value, dict) else None
    return _Place(path, wanted.keys().get(step), entry.node if entry else None, entry.at if entry else here.at, wanted)
