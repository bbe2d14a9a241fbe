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
KIND_NAMES = {
    "base": "as it came",
    "merged": "fine-tuned, merged",
    "full": "fine-tuned",
    "quantized": "quantised",
    "baseline": "closed",
    "managed": "closed, tuned",
}
#: What to call a limit of `select.at_most`.
LIMIT_NAMES = {"size_mb": "size", "memory_mb": "memory", "slowdown": "slowdown"}


def render(report: Mapping[str, Any], console: Console) -> None:
    """Print a report of `report.read`."""
    run, task = report["run"], report["task"]
    name = SCORE_NAMES.get(task["metric"], f"score ({task['metric']})")
    console.print(f"[bold]{run['recipe']}[/bold]  run {run['id']}, {run['status']}", highlight=False)
    if report["candidates"]:
        console.print(_candidates(report, name))
        _sentence(report, console)
    if any(row["measured_beside_parent"] for row in report["candidates"]):
        console.print(_variants(report))
        _how_quantized(report, console)
    if report["selection"] is not None:
        _selection(report["selection"], console)
    if report["guards"]:
        console.print(_guards(report))
    _closed(report, console)
    _training(report, console)


def html(report: Mapping[str, Any]) -> str:
    """The same as one self-contained HTML page."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=110, file=nowhere)
        render(report, console)
    page = console.export_html(inline_styles=True)
    picture = Path(report["run"]["folder"]) / "pareto.svg"
    if picture.exists():
        page = page.replace("</body>", picture.read_text(encoding="utf-8").partition("?>")[2] + "</body>")
    return page


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
        size = "" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.0f} MB"
        kind = KIND_NAMES.get(row["kind"], row["kind"])
        table.add_row(
            row["name"],
            f"{kind}, SIMULATED" if row.get("simulated") else kind,
            _percent(row["score"]),
            interval,
            *([str(row["unscored"])] if unscored else []),
            size,
            "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}",
        )
    return table


def _sentence(report: Mapping[str, Any], console: Console) -> None:
    for row in report["candidates"]:
        gain = row["difference_to_base"]
        if gain is not None and row["parent"] is None and row["size_bytes"] is not None:
            low, high = 100 * gain["ci_low"], 100 * gain["ci_high"]
            console.print(
                f"{row['name']} against base on the same {gain['n']} examples: {100 * gain['estimate']:+.1f} points "
                f"(95% interval {low:+.1f} to {high:+.1f})",
                highlight=False,
            )


def _variants(report: Mapping[str, Any]) -> Table:
    """The Pareto table: the model that was quantised, and its copies beside it."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Quantised copies beside the model they were made of, on the same examples",
        title_justify="left",
        caption="recovery: share of the score that is left. same: share of equal answers. KL: nats per answer token.\n"
        "prefill, decode: speed as a multiple of that model's, in the same run.\n"
        "Pareto: none is as good in score, size, memory and decoding, and better in one.",
        caption_justify="left",
    )
    table.add_column("candidate", no_wrap=True)
    for heading in ("recovery", "95% interval", "same", "KL", "size", "memory", "prefill", "decode", "Pareto"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["candidates"]:
        if row["dominated_by"] is None:
            continue
        weight = [f"{row['size_bytes'] / 1e6:.0f} MB", f"{row['peak_memory_bytes'] / 1e6:.0f} MB"]
        front = "no" if row["dominated_by"] else "yes"
        beside = row["measured_beside_parent"]
        if beside is None:
            table.add_row(row["name"], "", "", "", "", *weight, "1", "1", front)
            continue
        share = [_percent(row["recovery"]), f"{_percent(row['recovery_low'])} to {_percent(row['recovery_high'])}"]
        said = [_percent(row["agreement"]), f"{beside['fidelity']['kl_mean']:.2g}"]
        speed = [f"{beside['speed'][f'{what}_ratio']:.2f}" for what in ("prefill", "decode")]
        table.add_row(row["name"], *share, *said, *weight, *speed, front)
    return table


def _how_quantized(report: Mapping[str, Any], console: Console) -> None:
    for row in report["candidates"]:
        made, beside = row["quantization"], row["measured_beside_parent"]
        if made is None or beside is None:
            continue
        told = [f"{row['name']}: {duration(made['seconds'])}"]
        if made["calibrated_on"]:
            told.append(f"calibrated on {made['calibrated_on']}")
        told.append(f"runs on {beside['kernel']}, loads in {row['load_seconds']:.1f} s")
        fidelity = beside["fidelity"]
        told.append(f"perplexity {fidelity['perplexity']:.3g} against {fidelity['parent_perplexity']:.3g}")
        told.append(
            f"loaded again: {made['reloaded_identically']} of {made['probes']} rows read the same, {made['reloaded_near_ties']} near-ties"
        )
        console.print("; ".join(told), highlight=False)
        if row["not_exportable"]:
            console.print(f"{row['name']} cannot be exported: {'; '.join(row['not_exportable'])}", highlight=False)


def _selection(selection: Mapping[str, Any], console: Console) -> None:
    scores = ", ".join(f"{row['name']} {_percent(row['score'])}" for row in selection["candidates"])
    limits = {LIMIT_NAMES[key]: value for key, value in selection["at_most"].items() if value is not None}
    within = f" within {', '.join(f'{name} <= {value:g}' for name, value in limits.items())}" if limits else ""
    picked = selection["picked"]
    if picked is not None:
        console.print(f"selected on the validation split{within}: [bold]{picked}[/bold] ({scores})", highlight=False)
        return
    console.print(f"selected on the validation split: none, no candidate is{within} ({scores})", highlight=False)
    for row in selection["candidates"]:
        over = ", ".join(f"{LIMIT_NAMES[key]} {row[key]:.4g}" for key in row["beyond"])
        console.print(f"  {row['name']}: {over}", highlight=False)


def _closed(report: Mapping[str, Any], console: Console) -> None:
    """The closed models: which versions answered and at what price, the provider's fine-tune beside one's own, and the verdict."""
    for row in report["candidates"]:
        if row["size_bytes"] is not None:
            continue
        mark = "SIMULATED " if row["simulated"] else ""
        versions = ", ".join(f"{one['model']} ({one['answers']} answers)" for one in row["versions"]) or row["model"]
        cost = (
            "at no known price" if row["cost_per_1k_usd"] is None else f"${row['cost_per_1k_usd']:.3g} a thousand answers ({row['price']})"
        )
        console.print(f"{row['name']}: {mark}{versions}, {cost}", highlight=False, markup=False)
    managed, gate = report["managed"], report["gate"]
    if managed is not None:
        mark = "SIMULATED " if managed["simulated"] else ""
        console.print(
            f"managed fine-tune: {mark}{managed['model']}, {managed['trained_tokens']} trained tokens, ${managed['cost_usd']:.2f}. "
            "Its weights, its version and the training rows are with the provider, and there is no engine to run. A model of one's own "
            "keeps weights and data here, and wants a machine to serve it.",
            highlight=False,
            markup=False,
        )
        if managed["gate"] is not None:
            console.print(f"managed fine-tune at the gate: {managed['gate']['text']}", highlight=False, markup=False)
    if gate is not None:
        console.print(f"\n[bold]Gate[/bold] ({gate['subject']})")
        console.print(gate["text"], highlight=False, markup=False)
    if report["drifted"] is not None:
        console.print(_stale(report["drifted"], "the gate" if gate is not None else "the baseline"), highlight=False, markup=False)


def _stale(mark: Mapping[str, Any], what: str) -> str:
    why = {"score": "its score changed", "version": "another version answers"}[mark["verdict"]]
    later = f"; checks since then: {', '.join(mark['later'])}" if mark["later"] else ""
    return f"{what} is STALE since {mark['since'][:10]}: the closed model has drifted, {why} (check {mark['check']}){later}"


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
    console.print(f"training and evaluation took {duration(total_seconds(report, copies=False))}", highlight=False)
    if any(row["kind"] == "quantized" for row in report["candidates"]):
        console.print(f"making and measuring the quantised copies took {duration(total_seconds(report, copies=True))}", highlight=False)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}%"
