"""Metrics: one output against its references, from 0 to 1.

Adding a metric takes one file here with a `build(task, base)`, one line in `_METRICS`, and its name in
`recipe.schema.MetricName`. Files import heavy libraries inside their functions, so importing this package is cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.evaluation.metrics import (
    chrf,
    contains,
    exact_match,
    function,
    json_exact,
    json_f1,
    label,
    numeric,
    perplexity,
    regex,
    rouge_l,
)
from workbench.evaluation.metrics.score import Score, Scorer
from workbench.recipe.schema import MetricName, Task

__all__ = ["Score", "Scorer", "scorer"]

_METRICS: dict[MetricName, Callable[[Task, Path], Scorer]] = {
    "chrf": chrf.build,
    "contains": contains.build,
    "exact_match": exact_match.build,
    "function": function.build,
    "json_exact": json_exact.build,
    "json_f1": json_f1.build,
    "label": label.build,
    "numeric": numeric.build,
    "perplexity": perplexity.build,
    "regex": regex.build,
    "rouge_l": rouge_l.build,
}


def scorer(task: Task, *, base: Path) -> Scorer:
    """The scorer a task asks for.

    Args:
        task: the recipe's task section.
        base: folder of the recipe; relative paths in `task` start there.

    Raises:
        EvaluationError: what the metric needs (a schema, a pattern, a function) is missing or broken.
    """
    return _METRICS[task.metric](task, base)
