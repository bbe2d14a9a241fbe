"""A user's own scorer: a Python function `(output, reference, metadata) -> 0..1`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.errors import EvaluationError
from workbench.evaluation.metrics.score import Score, best
from workbench.recipe.schema import Task

UserFunction = Callable[[str, str, Mapping[str, Any]], object]


@dataclass(frozen=True)
class Function:
    """What the function returns, called once a reference. When it raises, or returns no number from 0 to 1, the example is unscored."""

    function: UserFunction
    name: str

    def score(self, output: str, references: Sequence[str], metadata: Mapping[str, Any]) -> Score:

        def compare(reference: str) -> Score:
            try:
                value = self.function(output, reference, metadata)
            except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and one example must not end the run
                return Score(None, reason=f"{self.name} raised {type(error).__name__}: {error}")
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:
                return Score(None, reason=f"{self.name} returned {repr(value)[:80]}, not a number from 0 to 1")
            return Score(float(value))

        return best(references, compare)


def build(task: Task, base: Path) -> Function:
    """Imports `task.function`, of the form `module:name`.

    The module is a file of the recipe's folder (`scoring`, `lib.scoring` or `lib/scoring.py`) or anything installed.

    Raises:
        EvaluationError: there is no such module or function, or importing it fails.
    """
    text = task.function or ""
    module, _, name = text.rpartition(":")
    if not module or not name:
        raise EvaluationError(f"{text!r} is not of the form module:name", where="task.function", fix="for example scoring:grade")
    try:
        loaded = _load(module, base)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        raise EvaluationError(
            f"cannot import {module!r}: {type(error).__name__}: {error}",
            where="task.function",
            fix=f"put the module beside the recipe, in {base}, or install it",
        ) from error
    function = getattr(loaded, name, None)
    if not callable(function):
        raise EvaluationError(f"{module!r} has no function {name!r}", where="task.function", fix=f"define it in {loaded.__file__}")
    return Function(function, text)


def _load(module: str, base: Path) -> ModuleType:
    path = base / (module if module.endswith(".py") else module.replace(".", "/") + ".py")
    with _importable(base.resolve(), path.resolve().parent):
        if not path.is_file():
            return importlib.import_module(module)
        # A name of its own: the `scoring.py` of another recipe in this process must not be taken for this one.
        unique = f"workbench_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[unique] = loaded  # dataclasses and pickling look modules up by name
        spec.loader.exec_module(loaded)
        return loaded


@contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Let the user's module import what lies beside the recipe and beside itself while it is loaded."""
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))
