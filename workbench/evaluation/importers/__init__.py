"""Outcomes from other tools' logs: what they measured becomes rows of the outcomes table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa

from workbench.errors import EvaluationError
from workbench.evaluation import outcomes
from workbench.evaluation.importers import inspect_log, lm_eval_log
from workbench.evaluation.importers.files import read_json

Kind = Literal["lm-eval", "inspect"]


def import_log(path: Path, *, kind: Kind | None = None, metric: str | None = None) -> pa.Table:
    """Read a log as an outcomes table.

    Args:
        path: of lm-evaluation-harness (run with `--log_samples`) a `samples_*.jsonl`, or the `results_*.json` beside
            it for all its tasks; of Inspect a `.eval` or `.json` log.
        kind: which tool wrote it; by default told from the file.
        metric: which of the log's metrics becomes the score; by default the first. lm-eval: `exact_match` or, for one
            filter, `exact_match,strict-match`; Inspect: `includes`, or `grader/field` for a scorer that gives several.

    Raises:
        EvaluationError: no such file or metric, a damaged log, or a metric that is not from 0 to 1.
    """
    match kind or _kind(path):
        case "lm-eval":
            rows = lm_eval_log.rows(path, metric)
        case "inspect":
            rows = inspect_log.rows(path, metric)
    return outcomes.from_rows(rows, where=str(path))


def _kind(path: Path) -> Kind:
    if path.suffix == ".jsonl":
        return "lm-eval"
    if path.suffix == ".eval":
        return "inspect"
    log = read_json(path)
    if isinstance(log, dict) and "eval" in log:
        return "inspect"
    if isinstance(log, dict) and "results" in log:
        return "lm-eval"
    raise EvaluationError("neither an lm-eval nor an Inspect log", where=str(path), fix="see `import_log` for the files that can be read")
