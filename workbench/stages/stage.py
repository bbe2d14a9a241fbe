"""What a stage is: a section of the recipe and input artifacts in, one artifact out, under a key made of all that decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from workbench.digest import digest
from workbench.store import Artifact

#: (metrics, step): numbers a stage reports while it works.
Report = Callable[[Mapping[str, float], int | None], None]


@dataclass(frozen=True)
class Work:
    """What a stage's function is given.

    Attributes:
        inputs: the artifacts of `Stage.inputs`, by stage name.
        staging: an empty directory to fill; it becomes the artifact.
        workspace: survives a kill; empty on the first attempt.
        report: for numbers worth following while the stage runs.
        state: what outlives every artifact: transcripts, and the count of looks at a test set.
    """

    inputs: Mapping[str, Artifact]
    staging: Path
    workspace: Path
    report: Report
    state: Path


@dataclass(frozen=True, eq=False)
class Stage:
    """One node of the stage graph.

    Attributes:
        name: unique in the graph, such as `train` or `evaluate:base:task`.
        version: raised when the stage's code would make something else of the same input.
        section: JSON-compatible; everything of the recipe and of the sources' digests that decides the result.
        inputs: the stages whose artifacts it reads.
        libraries: distributions whose version decides the result.
        make: fills `Work.staging` and returns JSON-compatible facts about the artifact.
        ahead: gets ready what `make` would have to wait for, such as a child's imports, while the stage before this one is made; given
            `Work.workspace`. What it returns is closed when the run ends, also if `make` was never called. Keep it small: it stays
            in memory beside that other stage.
    """

    name: str
    version: int
    section: Mapping[str, Any]
    make: Callable[[Work], Mapping[str, Any]] = field(repr=False)
    inputs: tuple[Stage, ...] = ()
    libraries: tuple[str, ...] = ()
    ahead: Callable[[Path], AbstractContextManager[None]] | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """What kind of stage it is: its name up to the first colon."""
        return self.name.partition(":")[0]

    @cached_property
    def ingredients(self) -> dict[str, Any]:
        """All that decides the artifact, in words; stored in its manifest."""
        return {
            "stage": self.name,
            "version": self.version,
            "section": self.section,
            "inputs": {stage.name: stage.key for stage in self.inputs},
            "libraries": {name: _version(name) for name in self.libraries},
        }

    @cached_property
    def key(self) -> str:
        """Digest of the ingredients, 16 hex digits."""
        return digest(self.ingredients)[:16]


def _version(distribution: str) -> str:
    try:
        return version(distribution).split("+")[0]  # a CPU and a CUDA build of torch are the same version
    except PackageNotFoundError:
        return "missing"
