"""Recipes to test with: a small one, one with every section, and a hypothesis strategy that follows the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from workbench.errors import RecipeError
from workbench.recipe import secrets
from workbench.recipe.emit import flow
from workbench.recipe.load import Loaded, load
from workbench.recipe.shape import RECIPE, Shape

SMALL = """\
name: tiny
model: {source: model}
data:
  source: rows.jsonl
  format: chat
task:
  metric: exact_match
"""

#: Every section of the schema once.
FULL: dict[str, Any] = {
    "name": "full",
    "model": {"source": "model", "license": "mit"},
    "data": {
        "source": "rows.jsonl",
        "format": "prompt_completion",
        "columns": {"prompt": "p", "completion": "c", "metadata": ["topic"]},
        "split": {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1, "seed": 1},
        "held_out": {"test": "test.jsonl"},
        "limit": {"train": 10},
    },
    "task": {"prompt": "{p}", "metric": "label", "labels": ["0", "1"], "stop": ["\n"]},
    "train": {"method": "lora", "rank": 4, "target_modules": ["q_proj"], "early_stopping": {"metric": "loss", "patience": 2}},
    "launch": {"num_processes": 1},
    "merge": {"check_prompts": 4},
    "quantize": [
        {"method": "gptq", "bits": 4, "group_size": 64, "calibration": {"rows": 64}},
        {"method": "bitsandbytes", "bits": 4, "type": "nf4", "double": True},
        {"method": "compressed_tensors", "scheme": "W4A16", "calibration": {"rows": 64}},
    ],
    "select": {"at_most": {"size_mb": 100}},
    "baseline": {
        "provider": "openai",
        "model": "gpt-4.1-2025-04-14",
        "price": {"input": 2.0, "output": 8.0},
        "simulator": {"accuracy": 0.9},
        "fine_tune": {"epochs": 2, "price": {"input": 1.0, "output": 2.0}},
    },
    "gate": {"margin": 0.03, "floors": {"score": 0.5}},
    "drift": {"canaries": 50},
    "evaluate": {"guards": [{"name": "ood", "source": "ood.jsonl", "format": "chat", "columns": {"prompt": "q"}, "floor": 0.5}]},
    "hub": {"token_env": "HF_TOKEN"},
    "tracking": {"experiment": "e"},
}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: not secrets.find(text))
_SHARES = st.sampled_from([(0.7, 0.1, 0.1, 0.1), (1.0, 0.0, 0.0, 0.0), (0.25, 0.25, 0.25, 0.25), (0.97, 0.01, 0.01, 0.01)])


def write(folder: Path, text: str | bytes | dict[str, Any], name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else (text if isinstance(text, str) else flow(text)).encode())
    return path


def try_load(path: Path, *overrides: str) -> Loaded | RecipeError:
    try:
        return load(path, overrides)
    except RecipeError as error:
        return error


def problems(path: Path, *overrides: str) -> list[tuple[str, str, str]]:
    """(where without the folder, what, fix) of every problem."""
    error = try_load(path, *overrides)
    assert isinstance(error, RecipeError), "the recipe was accepted"
    return [(str(one.where).removeprefix(f"{path.parent}/"), one.what, str(one.fix)) for one in error.problems]


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid recipe, as it might be typed: keys with defaults come and go."""
    recipe = draw(_values(RECIPE))
    _agree(draw, recipe)
    return recipe  # type: ignore[no-any-return]


def _values(shape: Shape) -> st.SearchStrategy[Any]:
    arms: list[st.SearchStrategy[Any]] = [st.none()] if shape.optional else []
    if shape.choices:
        arms.append(st.sampled_from(shape.choices))
    if shape.item is not None:
        arms.append(st.lists(_values(shape.item), min_size=shape.least, max_size=3, unique=shape.item.is_text))
    for section in shape.sections:
        keys = Shape(sections=(section,))
        required = set(keys.required())
        known = {name: _values(child) for name, child in keys.keys().items()}
        arms.append(
            st.fixed_dictionaries(
                {name: value for name, value in known.items() if name in required},
                optional={name: value for name, value in known.items() if name not in required},
            )
        )
    if shape.scalar is not None:
        arms.append(_scalars(shape))
    return st.one_of(arms)


def _scalars(shape: Shape) -> st.SearchStrategy[Any]:
    bounds = dict(shape.bounds)
    if shape.scalar is bool:
        return st.booleans()
    if shape.scalar is dict:
        return st.just({})
    if shape.scalar is int:
        return st.integers(int(bounds.get("gt", bounds.get("ge", -1) - 1)) + 1, int(bounds.get("lt", 10**12)) - 1)
    if shape.scalar is float:
        low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le", 1e9))
        return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
    return st.from_regex(shape.pattern, fullmatch=True).filter(lambda text: not secrets.find(text)) if shape.pattern else texts


def _agree(draw: st.DrawFn, recipe: dict[str, Any]) -> None:
    """Make the keys agree with each other, as the validators of the schema ask."""
    if "split" in recipe["data"]:
        recipe["data"]["split"] |= dict(zip(("train", "validation", "calibration", "test"), draw(_SHARES), strict=True))
    if recipe["data"]["format"] == "table" and not recipe["task"].get("prompt"):
        recipe["task"]["prompt"] = draw(texts)
    guards = recipe.get("evaluate", {}).get("guards", [])
    _agree_tasks(draw, [recipe["task"], *(guard["task"] for guard in guards if guard.get("task"))])
    for number, guard in enumerate(guards):
        guard["name"] = f"guard-{number}"
    train = recipe.get("train")
    if train and train.get("method") == "full":
        for key in ("rank", "alpha", "dropout", "target_modules", "modules_to_save", "layers", "dora", "rslora"):
            train.pop(key, None)
    if train and train.get("scheduler") == "constant":
        train.pop("warmup", None)
    adapts = train is not None and train.get("method") != "full"
    _agree_gate(recipe)
    for number, quantizer in enumerate(recipe.get("quantize", [])):
        _agree_quantizer(quantizer, number, adapts=adapts)


def _agree_gate(recipe: dict[str, Any]) -> None:
    baseline = recipe.get("baseline")
    if baseline:
        baseline["allow_floating"] = True
        baseline.pop("parameters", None)  # of any keys but those that are decided elsewhere
        if baseline["provider"] == "transcript":
            baseline["transcript"] = baseline.get("transcript") or "answers.jsonl"
            baseline.pop("url", None)
        else:
            baseline.pop("transcript", None)
            baseline["model"] = baseline.get("model") or "gpt-4.1-2025-04-14"
        if baseline["provider"] == "anthropic":
            baseline.pop("logprobs", None)
        if baseline["provider"] != "openai":
            baseline.pop("fine_tune", None)
        for priced in (baseline, baseline.get("fine_tune") or {}):
            price = priced.get("price")
            if price and (price.get("cached_input") or 0) > price["input"]:
                price.pop("cached_input")
    if recipe.get("gate"):
        recipe["gate"].pop("subject", None)  # only one of its values is there yet
    if not baseline or recipe.get("evaluate", {}).get("split", "test") != "test":
        recipe.pop("gate", None)


def _agree_quantizer(quantizer: dict[str, Any], number: int, *, adapts: bool) -> None:
    quantizer["name"] = f"variant-{number}"
    if quantizer.get("group_size") == 0:
        quantizer["group_size"] = -1
    if quantizer.get("scheme", "W4A16") != "W4A16":
        quantizer.pop("group_size", None)
    if quantizer.get("bits") == 8 and quantizer["method"] == "bitsandbytes":
        for key in ("type", "double", "compute_dtype", "keep_adapter"):
            quantizer.pop(key, None)
    if not adapts:
        quantizer.pop("keep_adapter", None)
    calibration = quantizer.get("calibration", {})
    if not 0 < round(calibration.get("rows", 256) * calibration.get("general_share", 0.25)) < calibration.get("rows", 256):
        calibration.pop("general", None)


def _agree_tasks(draw: st.DrawFn, tasks: list[dict[str, Any]]) -> None:
    for task in tasks:
        owners = {"labels": ("label",), "pattern": ("regex",), "function": ("function",), "json_schema": ("json_f1", "json_exact")}
        for key, metrics in owners.items():
            if task["metric"] not in metrics:
                task.pop(key, None)
            elif key != "json_schema" and not task.get(key):
                task[key] = draw(st.lists(texts, min_size=2, max_size=4, unique=True)) if key == "labels" else draw(texts)
