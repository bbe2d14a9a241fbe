"""Reading JSON out of a model's answer, and checking it against a schema; shared by the two JSON metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError

_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_DEEPEST = 100  # what recursive comparison and schema checks stand

#: What is wrong with a value, or None when it satisfies the schema.
Check = Callable[[Any], str | None]


def parse(text: str) -> Any:
    """The JSON value of a text: all of it, or else its first fenced code block that holds JSON.

    Raises:
        ValueError: there is none. NaN and Infinity are not JSON, and nesting beyond 100 levels is not taken for an answer.
    """
    for candidate in (text, *_FENCE.findall(text)):
        try:
            value = json.loads(candidate, parse_constant=_refuse)
        except (ValueError, RecursionError):
            continue
        if _depth_within(value, _DEEPEST):
            return value
    raise ValueError("not JSON")


def _depth_within(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [item for node in level if isinstance(node, dict | list) for item in (node.values() if isinstance(node, dict) else node)]
        if not level:
            return True
    return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0 but not true; the order of keys does not matter, that of arrays does."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def schema_check(schema: str | None, base: Path) -> Check:
    """A check of values against a JSON Schema file; one that accepts everything where there is no schema.

    Args:
        schema: path of the file, relative to `base`.

    Raises:
        EvaluationError: the file is missing, is not JSON, or is no JSON Schema. References to other documents are
            not followed: nothing is fetched.
    """
    if schema is None:
        return lambda value: None
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    path = base / schema
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise SchemaError("it is not an object")
        kind = validator_for(document)
        kind.check_schema(document)
    except OSError as error:
        raise EvaluationError(f"the JSON schema cannot be read: {error.strerror}", where=str(path), fix="see `task.json_schema`") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"not JSON: {error}", where=str(path), fix="correct the file that `task.json_schema` names") from error
    except SchemaError as error:
        raise EvaluationError(f"no JSON Schema: {error.message}", where=f"{path}, {error.json_path}", fix="correct the schema") from error
    validator = kind(document, registry=Registry())

    def check(value: Any) -> str | None:
        try:
            problem = next(iter(validator.iter_errors(value)), None)
        except Unresolvable as error:
            raise EvaluationError(
                f"the schema refers to something that is not in it: {error}", where=str(path), fix="put it under `$defs` of the same file"
            ) from error
        return None if problem is None else f"violates the schema at {problem.json_path}: {problem.message[:200]}"

    return check
