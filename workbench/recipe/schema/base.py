"""What every section of the recipe is made of: strict mappings, kinds of text and number, and faults between keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: The *name* of an environment variable. Values never enter a recipe, a log or an artifact.
ENV_NAME = r"^[A-Z_][A-Z0-9_]*$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
URL = r"^https?://[^\s@?#]+$"
#: Part of the id of a model that a provider tunes.
SUFFIX = r"^[A-Za-z0-9_-]{1,40}$"


class LocalPath:
    """Marks a text that may name a file relative to the recipe's own folder; a text with `://` is not one."""


class LocalFunction:
    """Marks a text `module:name` whose module may be a file in the recipe's own folder."""


EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME)]
Name = Annotated[str, StringConstraints(pattern=NAME)]
Url = Annotated[str, StringConstraints(pattern=URL)]
Suffix = Annotated[str, StringConstraints(pattern=SUFFIX)]
Text = Annotated[str, StringConstraints(min_length=1)]
PathText = Annotated[str, StringConstraints(min_length=1), LocalPath()]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy's bound


@dataclass(frozen=True)
class Fault:
    """One disagreement between keys that are each right by themselves.

    Attributes:
        key: the key of the section that is most likely to blame; None blames the section as a whole.
        what: one sentence.
        fix: what to do about it.
    """

    key: str | None
    what: str
    fix: str


class InconsistentError(ValueError):
    """Keys of one section disagree; carries every fault. Pydantic collects it like any other ValueError."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.what for fault in faults))


def agree(*faults: Fault | None) -> None:
    """Raise `InconsistentError` with the faults that are not None, if there are any."""
    found = [fault for fault in faults if fault is not None]
    if found:
        raise InconsistentError(found)


class Section(BaseModel):
    """A mapping in the recipe: no unknown keys, no silent type conversions, immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
