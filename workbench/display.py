"""What a run's evidence looks like in a terminal, in words a stranger understands; the same tables as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from workbench.progress import duration
from workbench.report import total_seconds

#: What a score is called, by metric.
SCORE_NAMES = {
    "label": "right answers",
    "exact_match": "right answers",
    "numeric": "right answers",
    "json_exact": "right answers",
    "perplexity": "1 / perplexity",
}
KIND_NAMES = {"base": "as it came", "merged": "fine-tuned, merged", "full": "fine-tuned"}


def render(report: Mapping[str, Any], console: Console) -> None:
    """Print a report of `report.read`."""
    run, task = report["run"], report["task"]
    name = SCORE_NAMES.get(task["metric"], f"score ({task['metric']})")
    console.print(f"[bold]{run['recipe']}[/bold]  run {run['id']}, {run['status']}", highlight=False)
    if report["candidates"]:
        console.print(_candidates(report, name))
        _sentence(report, console)
    if report["guards"]:
        console.print(_guards(report))
    _training(report, console)


def html(report: Mapping[str, Any]) -> str:
    """The same as one self-contained HTML page."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=110, file=nowhere)
        render(report, console)
    return console.export_html(inline_styles=True)


def _candidates(report: Mapping[str, Any], name: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"On {report['candidates'][0]['n']} held-out examples ({report['task']['split']} split)",
        title_justify="left",
    )
    table.add_column("candidate", no_wrap=True)
    table.add_column("what it is")  # the one column that may wrap: everything fits into 80 characters
    unscored = any(row["unscored"] for row in report["candidates"])
    for heading in (name, "95% interval", *(["unscored"] if unscored else []), "size", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["candidates"]:
        interval = "" if row["score"] is None else f"{_percent(row['ci_low'])} to {_percent(row['ci_high'])}"
        size = f"{row['size_bytes'] / 1e6:.0f} MB"
        table.add_row(
            row["name"],
            KIND_NAMES.get(row["kind"], row["kind"]),
            _percent(row["score"]),
            interval,
            *([str(row["unscored"])] if unscored else []),
            size,
            f"{row['tokens_per_s']:.0f}",
        )
    return table


def _sentence(report: Mapping[str, Any], console: Console) -> None:
    for row in report["candidates"]:
        gain = row["difference_to_base"]
        if gain is not None:
            low, high = 100 * gain["ci_low"], 100 * gain["ci_high"]
            console.print(
                f"{row['name']} against base on the same {gain['n']} examples: {100 * gain['estimate']:+.1f} points "
                f"(95% interval {low:+.1f} to {high:+.1f})",
                highlight=False,
            )


def _guards(report: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Guard sets: what the fine-tune did outside its task", title_justify="left")
    for heading in ("guard", "candidate"):
        table.add_column(heading)
    for heading in ("score", "95% interval", "n", "unscored", "floor"):
        table.add_column(heading, justify="right")
    for row in report["guards"]:
        interval = "" if row["score"] is None else f"{_percent(row['ci_low'])} to {_percent(row['ci_high'])}"
        floor = (
            ""
            if row["floor"] is None
            else f"{_percent(row['floor'])}{'' if row['floor_met'] is None else ' met' if row['floor_met'] else ' MISSED'}"
        )
        table.add_row(row["guard"], row["candidate"], _percent(row["score"]), interval, str(row["n"]), str(row["unscored"]), floor)
    return table


def _training(report: Mapping[str, Any], console: Console) -> None:
    training, merge, model = report["training"], report["merge"], report["model"]
    if training is not None:
        loss = "" if training["validation_loss"] is None else f", validation loss {training['validation_loss']:.3f}"
        console.print(
            f"trained {training['method']} on {training['rows']} rows ({training['tokens']} tokens, "
            f"{training['trained_parameters'] / 1e6:.1f} M parameters) in {duration(training['seconds'])}{loss}",
            highlight=False,
        )
    if merge is not None:
        console.print(
            f"merged in 16 bits: {merge['identical']} of {merge['prompts']} prompts answered identically, {merge['near_ties']} near-ties, "
            f"largest logit difference {merge['max_logit_difference']:.2g}",
            highlight=False,
        )
    if model is not None and model["dequantised_from_gguf"]:
        console.print("the base's weights were dequantised from a GGUF file: its scores are those of the quantised model", highlight=False)
    console.print(
        f"training and evaluation took {duration(total_seconds(report['stages'], 'train', 'merge', 'evaluate'))}", highlight=False
    )


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}%"
