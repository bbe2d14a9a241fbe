"""lm-evaluation-harness: `samples_TASK_DATE.jsonl` with the `results_DATE.json` of the same run.

Format: `lm_eval/loggers/evaluation_tracker.py` and `lm_eval/evaluator.py` of lm-eval 0.4.13. A line is one document
under one filter (a way to extract the answer); its metrics are keys of the line, named in its list `metrics`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from workbench.errors import EvaluationError
from workbench.evaluation.importers.files import Row, choose, convert, parse_json, read_bytes, read_json, score

_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
_TOOL = "lm-eval"


def rows(path: Path, metric: str | None) -> list[Row]:
    """Rows of one samples file, or of all of a results file; see `import_log`.

    The candidate is the model's name in the results file, else the folder's. `example_id` is task, document number and
    a piece of the document's hash, so that the same number of another edition of the data never pairs with it.
    """
    if path.suffix == ".jsonl":
        match = _SAMPLES.fullmatch(path.name)
        if match is None:
            raise EvaluationError("not named samples_TASK_DATE.jsonl", where=str(path), fix="keep the name that lm-eval gave it")
        beside = path.with_name(f"results_{match['date']}.json")
        results = _results(beside) if beside.is_file() else {}
        return _task_rows(path, match["task"], metric, results)
    results = _results(path)
    date = path.stem.removeprefix("results_")
    named = [(file, _SAMPLES.fullmatch(file.name)) for file in sorted(path.parent.glob("samples_*.jsonl"))]
    tasks = [(file, match["task"]) for file, match in named if match and match["date"] == date]
    if not tasks:
        raise EvaluationError("no samples_*.jsonl of this run beside it", where=str(path), fix="run lm-eval with --log_samples")
    return [row for file, task in tasks for row in _task_rows(file, task, metric, results)]


def _results(path: Path) -> dict[str, Any]:
    results = read_json(path)
    if not isinstance(results, dict):
        raise EvaluationError("not a JSON object", where=str(path), fix="give the results_*.json that lm-eval wrote")
    return results


def _task_rows(path: Path, task: str, metric: str | None, results: dict[str, Any]) -> list[Row]:
    where = str(path)
    lines = [line for line in read_bytes(path).split(b"\n") if line.strip()]
    samples = [parse_json(line, f"{where}, row {number}") for number, line in enumerate(lines, start=1)]
    named = convert(samples, lambda s: {f"{name},{s['filter']}": None for name in s["metrics"]}, where=where, tool=_TOOL)
    available = list(dict.fromkeys(key for names in named for key in names))
    if metric is not None and "," not in metric:
        metric = next((key for key in available if key.split(",")[0] == metric), metric)
    chosen = choose(metric, available, where)
    name, _, filter_name = chosen.partition(",")
    model = str(results.get("model_name") or path.parent.name)
    simulated = True if results.get("model_source") == "dummy" else None  # no log tells of an endpoint whether it was a simulator

    def row(sample: dict[str, Any]) -> Row:
        choices = _choices(sample)
        target = str(sample["target"])
        return {
            "candidate": model,
            "example_id": f"{task}-{sample['doc_id']}-{sample['doc_hash'][:8]}",
            "score": score(sample[name], chosen, available, where),
            "prompt": str(sample["arguments"]["gen_args_0"]["arg_0"]),
            "output": _best_choice(sample, choices) if choices else _text(sample["resps"][0][0]),
            "reference": choices[int(target)] if choices and target.isdecimal() and int(target) < len(choices) else target,
            "model_requested": model,
            "metadata": {"task": task, "metric": name, "filter": filter_name, **_plain_fields(sample["doc"])},
            "simulated": simulated,
        }

    return convert([s for s in samples if s["filter"] == filter_name], row, where=where, tool=_TOOL)


def _choices(sample: dict[str, Any]) -> list[str]:
    """The answers of a multiple-choice document, in order; empty for generated answers."""
    calls = sample["arguments"]
    texts = [calls[f"gen_args_{index}"].get("arg_1") for index in range(len(calls))]
    return [text.strip() for text in texts] if all(isinstance(text, str) for text in texts) else []


def _best_choice(sample: dict[str, Any], choices: list[str]) -> str:
    """The likeliest choice. A response is [[log-likelihood, is greedy]]; some metrics rank by other, length-normalised numbers."""
    likelihoods = [float(response[0][0]) for response in sample["resps"][: len(choices)]]
    return choices[likelihoods.index(max(likelihoods))]


def _text(response: Any) -> str | None:
    return response if isinstance(response, str) else None


def _plain_fields(doc: Any) -> Row:
    """The document's own scalar fields, as slices; under `doc` where a name is taken."""
    if not isinstance(doc, dict):
        return {}
    taken = ("task", "metric", "filter")
    return {f"doc.{key}" if key in taken else key: value for key, value in doc.items() if isinstance(value, str | int | bool)}
