"""The command line: verbs only. Parse, call, print. Importing this file loads no torch."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import EnvironmentFault, RecipeError, WorkbenchError

app = typer.Typer(
    name="workbench",
    help="From one declarative recipe to a tracked, evaluated, servable fine-tune.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
data_app = typer.Typer(help="Data sources and logs of other tools.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, such as train.learning_rate=2e-4; repeatable")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]


def state() -> Path:
    """Where runs and artifacts live: `.workbench` in the working directory."""
    return Path(".workbench").absolute()


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="the recipe's name; NAME.yaml is written")],
    template: Annotated[str, typer.Option(help="classification, extraction, chat or table")] = "classification",
    traffic: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="JSONL of logged chat traffic to scaffold from, instead of a template")
    ] = None,
) -> None:
    """Scaffold a recipe from a template or from a file of logged traffic."""
    from workbench.recipe import scaffold

    target = Path(f"{name}.yaml")
    if target.exists():
        raise WorkbenchError("the file exists already", where=str(target), fix="choose another name, or move the file away")
    text = scaffold.from_traffic(name, traffic) if traffic is not None else scaffold.from_template(name, template)
    if traffic is not None and scaffold.needs_conversion(traffic):
        scaffold.convert_traffic(traffic, Path(f"{name}.jsonl"))
    target.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {target}; next: workbench check {target} --preview")


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="print the whole recipe with the origin of every value")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="render real rows, count lengths, estimate memory and time")] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a recipe, spending nothing."""
    from workbench.check import check_static
    from workbench.recipe.load import load
    from workbench.recipe.resolved import dump

    loaded = load(recipe, overrides or [])
    check_static(loaded)
    if resolved:
        text = dump(loaded)
        typer.echo(json.dumps({"recipe": loaded.recipe.name, "valid": True, "resolved": text}) if as_json else text, nl=as_json)
        return
    if preview:
        from workbench import preview as previews

        found = previews.preview(loaded, state())
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False) if as_json else found.text())
        if found.problems:
            raise RecipeError(list(found.problems))
        return
    typer.echo(json.dumps({"recipe": loaded.recipe.name, "valid": True}) if as_json else f"{recipe}: valid")


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="stop after this kind of stage, such as train, merge or evaluate")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe to its end; after a crash the same command continues.

    Exit code 3 or 4 where the recipe's gate says FAIL or INCONCLUSIVE.
    """
    from workbench.check import check_static
    from workbench.recipe.load import load

    loaded = load(recipe, overrides or [])
    check_static(loaded)
    from workbench import pipeline

    if until is not None and until not in pipeline.STAGES:
        raise WorkbenchError(f"there is no stage {until!r}", where="--until", fix=f"choose among {', '.join(pipeline.STAGES)}")
    folder = pipeline.run(loaded, state(), until=until)
    if folder is not None:
        gate = _print_report(folder, as_json=as_json)["gate"]
        if not as_json:
            typer.echo(f"compare runs in MLflow: {_command()} ui")
        if gate is not None:
            from workbench.evaluation.gate.verdict import EXIT_CODES

            sys.exit(EXIT_CODES[gate["verdict"]])


@app.command()
def show(
    run_name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run's id, folder or recipe name; default: the latest run")
    ] = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write the report as a web page")] = None,
) -> None:
    """Show the evidence of a run."""
    from workbench.report import find_run

    _print_report(find_run(state(), run_name), as_json=as_json, html=html)


def _print_report(folder: Path, *, as_json: bool, html: Path | None = None) -> dict[str, Any]:
    from rich.console import Console

    from workbench import display, report

    found = report.read(folder)
    if as_json:
        typer.echo(json.dumps(found))
    elif html is not None:
        html.write_text(display.html(found), encoding="utf-8")
        typer.echo(f"wrote {html}")
    else:
        display.render(found, Console(width=None if sys.stdout.isatty() else 110))
    return found


@app.command()
def gate(
    candidate: Annotated[Path, typer.Option(metavar="FILE", help="outcomes of what is judged: .parquet, .csv or .jsonl")],
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="outcomes of what it is judged against, on the same examples")],
    margin: Annotated[float, typer.Option(help="how much lower the mean score may be, from 0 to 1")],
    alpha: Annotated[float, typer.Option(help="how often a candidate that is worse by the margin may pass")] = 0.05,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="FIELD[=VALUE]", help="a field of metadata whose every value must pass too; repeatable"),
    ] = None,
    floors: Annotated[
        list[str] | None,
        typer.Option("--floor", metavar="NAME=NUMBER", help="a key of gate.floors and its limit, such as latency_p99_s=1; repeatable"),
    ] = None,
    unscored: Annotated[str, typer.Option(help="rows without a score: fail (against the candidate), exclude or refuse")] = "fail",
    sequential: Annotated[
        bool, typer.Option("--sequential", help="judge after every example, in the table's order, and stop early")
    ] = False,
    candidate_name: Annotated[str | None, typer.Option(metavar="NAME", help="which candidate, where the file holds several")] = None,
    baseline_name: Annotated[str | None, typer.Option(metavar="NAME", help="which baseline, where the file holds several")] = None,
    size_mb: Annotated[float | None, typer.Option(help="size of the candidate's weights, for --floor size_mb=...")] = None,
    count_look: Annotated[
        bool, typer.Option("--count-look", help="count this look at the test set, and judge it more strictly after earlier ones")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge a candidate against a baseline, on outcomes tables from anywhere. Exit code 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
    from workbench.evaluation.gate import gate_files

    verdict = gate_files(
        candidate,
        baseline,
        margin=margin,
        alpha=alpha,
        slices=slices or [],
        floors=floors or [],
        unscored=unscored,
        sequential=sequential,
        candidate_name=candidate_name,
        baseline_name=baseline_name,
        size_bytes=None if size_mb is None else round(size_mb * 1e6),
        count_in=state() if count_look else None,
    )
    typer.echo(json.dumps(verdict.to_json(), ensure_ascii=False) if as_json else verdict.text())
    sys.exit(verdict.exit_code)


@app.command()
def drift(
    which: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="a recipe that was run, or a run's id, folder or recipe name")],
    overrides: Overrides = None,
    canaries: Annotated[int | None, typer.Option(help="how many examples to ask again; default: drift.canaries")] = None,
    repeats: Annotated[int | None, typer.Option(help="answers to each of them, two or more; default: drift.repeats")] = None,
    alpha: Annotated[float | None, typer.Option(help="how often an unchanged model may be called changed; default: drift.alpha")] = None,
    budget: Annotated[float | None, typer.Option(metavar="USD", help="most that this check may cost; default: drift.budget_usd")] = None,
    as_json: AsJson = False,
) -> None:
    """Has the closed model changed underneath? Asks it a canary subset again. Exit code 0 same or other words, 3 drifted."""
    from workbench import drift as drifting

    changes = {"canaries": canaries, "repeats": repeats, "alpha": alpha, "budget_usd": budget}
    check = drifting.drift(which, state(), overrides=overrides or [], changes=changes)
    typer.echo(json.dumps(check.facts, ensure_ascii=False) if as_json else check.text())
    sys.exit(check.found.exit_code)


@app.command()
def simulate(
    settings: Annotated[Path | None, typer.Argument(metavar="[SETTINGS]", help="YAML or JSON; default: the settings' defaults")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting, such as references=answers.jsonl; repeatable")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one")] = 8000,
) -> None:
    """Play a closed model: an OpenAI-compatible server whose answers are SIMULATED."""
    from workbench.simulator.server import serve
    from workbench.simulator.settings import load

    serve(load(settings, overrides or []), host, port, lambda url: typer.echo(f"SIMULATED closed model at {url}"))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the recipe, for editors."""
    from workbench.recipe.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def sync() -> None:
    """Send to MLflow what runs could not send while it was away."""
    from workbench.tracking import sync_all

    result = sync_all(state())
    typer.echo(f"sent {result.sent} records, {result.left} left")
    for text in result.refused:
        typer.echo(f"MLflow refused: {text}", err=True)
    if result.error:
        raise EnvironmentFault(
            f"MLflow is not reachable: {result.error}", fix="start the server or set MLFLOW_TRACKING_URI, then run `workbench sync` again"
        )


@app.command()
def ui() -> None:
    """Open the MLflow UI on this folder's runs."""
    from workbench.tracking import ui_command

    command = ui_command(state())
    os.execv(command[0], command)


@data_app.command("fetch")
def data_fetch(source: Annotated[str, typer.Argument(help="a path, hf://... or pypi://...")], as_json: AsJson = False) -> None:
    """Materialise a source and print where it is."""
    from workbench.recipe.schema import Hub
    from workbench.sources.fetch import default_cache, materialise
    from workbench.sources.reference import parse

    found = materialise(parse(source, base=Path.cwd()), cache=default_cache(), hub=Hub())
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    facts = {"path": str(found.path), "digest": found.digest, "origin": found.origin}
    typer.echo(json.dumps(facts) if as_json else found.path)


@data_app.command("import")
def data_import(
    log: Annotated[Path, typer.Argument(help="samples_*.jsonl of lm-evaluation-harness, or a log of inspect")],
    out: Annotated[Path, typer.Option(help="the outcomes table to write, .parquet")],
    metric: Annotated[str | None, typer.Option(help="which of the log's metrics is the score; default: the first")] = None,
) -> None:
    """Turn another tool's evaluation log into an outcomes table."""
    from workbench.evaluation import outcomes
    from workbench.evaluation.importers import import_log

    table = import_log(log, metric=metric)
    outcomes.write(table, out)
    typer.echo(f"wrote {out}: {table.num_rows} outcomes")


def _command() -> str:
    """How this user calls `workbench`: by name, or by its path in an environment that is not activated."""
    return "workbench" if shutil.which("workbench") else os.path.relpath(Path(sys.executable).parent / "workbench")


def main() -> None:
    """The `workbench` command: errors become one message and an exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, standalone_mode=False, prog_name="workbench")
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted; the same command continues", err=True)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text, code = _explained(error)
        typer.echo(text, err=True)
        sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say about an error, and the exit code."""
    if isinstance(error, WorkbenchError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}\n  fix: check the path, its permissions and the disk", 1
    usage = getattr(error, "format_message", None)  # click's own errors: a bad option, a missing argument
    if usage is not None:
        text, context = usage(), getattr(error, "ctx", None)
        command = context.command_path if context is not None else "workbench"
        # A verb without its arguments gets its help, which is no complaint.
        return (text if text.startswith("Usage:") else f"error: {command}: {text}\n  fix: see {command} --help"), 2
    return f"error: unexpected {type(error).__name__}: {error}\n  fix: run again with --debug and report what it prints", 1
