"""What the schema wants at each place of a recipe: one plain value to ask, instead of pydantic's and typing's internals.

Error messages, suggestions, `--set` and the resolved recipe all look here, so a new key needs no second description.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import StringConstraints
from pydantic.fields import FieldInfo

from workbench.recipe.schema import LocalFunction, LocalPath, Recipe, Section

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Shape:
    """What may stand at one place of a recipe.

    Attributes:
        sections: the mapping wanted here; several when `tag`, a key they all have, decides between them.
        tag: the deciding key of several sections.
        item: shape of the elements, where a list is wanted.
        choices: the allowed values, where only these are.
        scalar: str, int, float or bool, where any value of that type is wanted; dict, where keys and values of somebody else's are.
        optional: whether null is allowed.
        bounds: ("gt" | "ge" | "lt" | "le", number) pairs on a number.
        least: fewest characters of a text or elements of a list.
        pattern: regular expression that a text must match.
        is_path: a text that may name a file relative to the recipe.
        is_function: a text `module:name` whose module may be a file relative to the recipe.
        field: the schema's field, for its description, default and examples; None for elements and the whole recipe.
    """

    sections: tuple[type[Section], ...] = ()
    tag: str | None = None
    item: Shape | None = None
    choices: tuple[Any, ...] = ()
    scalar: type | None = None
    optional: bool = False
    bounds: tuple[tuple[str, float], ...] = ()
    least: int = 0
    pattern: str | None = None
    is_path: bool = False
    is_function: bool = False
    field: FieldInfo | None = None

    @property
    def is_union(self) -> bool:
        """Whether pydantic names the alternative it tried in an error's location."""
        return len(self.sections) > 1 or bool(self.item) + bool(self.choices) + bool(self.scalar) > 1

    @property
    def is_text(self) -> bool:
        """Whether nothing but a text (or null) may stand here."""
        return self.scalar is str and self.item is None

    def keys(self) -> dict[str, Shape]:
        """The keys of the section wanted here; empty where none is. Of several sections, all their keys."""
        found: dict[str, Shape] = {}
        for section in self.sections:
            for name, child in section_keys(section).items():
                both = found.get(name, child)
                # The tag's choices are one literal per section; together they are what may be written.
                found[name] = child if name != self.tag or both is child else _join(both, child)
        return found

    def required(self) -> Iterator[str]:
        """The keys without a default."""
        return (name for name, child in self.keys().items() if child.field is not None and child.field.is_required())


def _join(first: Shape, second: Shape) -> Shape:
    return Shape(choices=first.choices + second.choices, field=first.field)


@cache
def section_keys(section: type[Section]) -> dict[str, Shape]:
    """The shape of every key of a section, in the order of the schema."""
    return {name: _shape(field.annotation, tuple(field.metadata), field) for name, field in section.model_fields.items()}


def _shape(annotation: Any, metadata: tuple[Any, ...], field: FieldInfo | None = None) -> Shape:
    parts: dict[str, Any] = {"field": field}
    _constrain(parts, metadata)
    _read(parts, annotation)
    return Shape(**parts)


def _read(parts: dict[str, Any], annotation: Any) -> None:
    """Add what an annotation allows to the parts of a shape; the arms of a union add up."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        _constrain(parts, arguments[1:])
        _read(parts, arguments[0])
    elif origin in (Union, UnionType):
        for arm in arguments:
            _read(parts, arm)
    elif annotation is NoneType:
        parts["optional"] = True
    elif origin is list:
        parts["item"] = _shape(arguments[0], ())
    elif origin is dict:
        parts["scalar"] = dict
    elif origin is Literal:
        parts["choices"] = arguments
    elif issubclass(annotation, Section):
        parts["sections"] = (*parts.get("sections", ()), annotation)
    else:
        parts["scalar"] = annotation


def _constrain(parts: dict[str, Any], metadata: Iterable[Any]) -> None:
    """Add the constraints of `Annotated` metadata to the parts of a shape."""
    for mark in metadata:
        if isinstance(mark, FieldInfo):
            if isinstance(mark.discriminator, str):
                parts["tag"] = mark.discriminator
            _constrain(parts, mark.metadata)
        elif isinstance(mark, LocalPath):
            parts["is_path"] = True
        elif isinstance(mark, LocalFunction):
            parts["is_function"] = True
        elif isinstance(mark, StringConstraints):
            parts |= {"least": mark.min_length or 0, "pattern": mark.pattern}
        elif hasattr(mark, "min_length"):
            parts["least"] = mark.min_length
        else:
            bounds = [(name, getattr(mark, name)) for name in ("gt", "ge", "lt", "le") if hasattr(mark, name)]
            parts["bounds"] = (*parts.get("bounds", ()), *bounds)


#: The whole recipe.
RECIPE = Shape(sections=(Recipe,))


def dotted(path: Path) -> str:
    """A path as `--set` writes it: `quantize.0.bits`."""
    return ".".join(map(str, path))


def places() -> Iterator[tuple[str, Shape]]:
    """Every key of the schema, sections included, with its dotted path.

    Keys of a list's elements are written `evaluate.guards[].floor`; with the tag where it decides: `quantize[gptq].bits`.
    """
    return _places(RECIPE, "")


def _places(shape: Shape, prefix: str) -> Iterator[tuple[str, Shape]]:
    for section in shape.sections:
        for name, child in section_keys(section).items():
            path = f"{prefix}{name}"
            yield path, child
            if child.item is not None:
                for arm in child.item.sections:
                    tag = section_keys(arm)[child.item.tag].choices[0] if child.item.tag else ""
                    yield from _places(Shape(sections=(arm,)), f"{path}[{tag}].")
            else:
                yield from _places(child, f"{path}.")


def keys() -> list[str]:
    """The dotted path of every key that holds a value rather than a section; see `places` for how lists are written."""
    return [path for path, shape in places() if not shape.sections and not (shape.item and shape.item.sections)]
