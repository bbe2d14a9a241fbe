"""What can be said against a valid recipe without fetching or computing anything: files that are not there, adapters nobody can serve."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import RecipeError, SourceError, WorkbenchError
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Train
from workbench.sources.reference import PathSource, parse

#: Largest LoRA rank that vLLM loads (its `max_lora_rank` option allows no more).
LARGEST_SERVED_RANK = 512


def check_static(loaded: Loaded) -> None:
    """Check what a recipe names.

    Raises:
        RecipeError: with every problem, each at the line of the recipe that causes it.
    """
    problems = [*_sources(loaded), *_files(loaded), *_launch(loaded)]
    if loaded.recipe.train is not None:
        problems += _served(loaded, loaded.recipe.train)
    if problems:
        raise RecipeError(problems)


def _sources(loaded: Loaded) -> list[WorkbenchError]:
    recipe = loaded.recipe
    texts: dict[tuple[str | int, ...], str] = {("model", "source"): recipe.model.source, ("data", "source"): recipe.data.source}
    texts |= {("data", "held_out", split): text for split, text in recipe.data.held_out.model_dump().items() if text is not None}
    texts |= {("evaluate", "guards", index, "source"): guard.source for index, guard in enumerate(recipe.evaluate.guards)}
    if recipe.baseline is not None and recipe.baseline.transcript is not None:
        texts["baseline", "transcript"] = recipe.baseline.transcript
    for index, section in enumerate(recipe.quantize):
        calibration = getattr(section, "calibration", None)
        if calibration is not None and calibration.general is not None:
            texts["quantize", index, "calibration", "general"] = calibration.general
    problems = []
    for path, text in texts.items():
        try:
            source = parse(text, base=loaded.base)
        except SourceError as error:
            problems.append(WorkbenchError(error.what, where=loaded.where(*path), fix=error.fix))
            continue
        if isinstance(source, PathSource) and not source.path.exists():
            problems.append(_missing(loaded, source.path, *path))
    return problems


def _files(loaded: Loaded) -> list[WorkbenchError]:
    recipe = loaded.recipe
    named = {
        ("model", "chat_template"): recipe.model.chat_template,
        ("launch", "config_file"): recipe.launch.config_file,
        ("task", "json_schema"): recipe.task.json_schema,
    }
    return [
        _missing(loaded, loaded.file(text), *path) for path, text in named.items() if text is not None and not (loaded.file(text)).is_file()
    ]


def _launch(loaded: Loaded) -> list[WorkbenchError]:
    """An accelerate config that accelerate could not even read; what its keys mean is for accelerate to say."""
    text = loaded.recipe.launch.config_file
    if text is None or not loaded.file(text).is_file():
        return []
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        config = YAML(typ="safe").load(loaded.file(text).read_text(encoding="utf-8"))
        fault = None if isinstance(config, dict) else "it holds no keys and values"
    except (YAMLError, ValueError, OSError) as error:
        fault = " ".join(str(error).split())[:200]
    if fault is None:
        return []
    what = f"{loaded.file(text)} is no accelerate config: {fault}"
    return [WorkbenchError(what, where=loaded.where("launch", "config_file"), fix="write one with `accelerate config --config_file FILE`")]


def _missing(loaded: Loaded, path: Path, *key: str | int) -> WorkbenchError:
    here = (
        Path(path.name)
        if not path.is_absolute()
        else Path.cwd() / path.relative_to(loaded.base)
        if path.is_relative_to(loaded.base)
        else None
    )
    hint = "; paths start at the recipe's own folder" if here is not None and here.exists() else ""
    return WorkbenchError(f"no such file: {path}", where=loaded.where(*key), fix=f"correct the path{hint}")


def _served(loaded: Loaded, train: Train) -> list[WorkbenchError]:
    """Adapters that training makes gladly and no serving stack loads."""
    if train.method == "full" or not train.serve_adapter:
        return []
    fix = "set train.serve_adapter: false if only the merged weights will be served"
    problems = []
    if train.modules_to_save:
        what = "vLLM cannot serve an adapter with `modules_to_save`"
        problems.append(WorkbenchError(what, where=loaded.where("train", "modules_to_save"), fix=f"leave it out, or {fix}"))
    if train.dora:
        problems.append(
            WorkbenchError("vLLM cannot serve a DoRA adapter", where=loaded.where("train", "dora"), fix=f"leave it off, or {fix}")
        )
    if train.rank > LARGEST_SERVED_RANK:
        what = f"vLLM serves adapters up to rank {LARGEST_SERVED_RANK}, not {train.rank}"
        problems.append(WorkbenchError(what, where=loaded.where("train", "rank"), fix=f"lower it, or {fix}"))
    return problems
