"""Are the weights whole, and of a format that runs no code? Reads headers, never the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import EnvironmentFault, SourceError
from workbench.sources import gguf_header
from workbench.sources.reference import PICKLES

FETCH_AGAIN = "copy or download it again"


def check_weights(path: Path) -> None:
    """Check a model folder, or a single .gguf file.

    Raises:
        SourceError: names the one file that is missing, cut short, damaged or of a refused format.
    """
    if path.is_dir():
        _check_folder(path)
    elif path.suffix == ".gguf":
        gguf_header.check(path)
    else:
        raise SourceError("is neither a model folder nor a .gguf file", where=str(path), fix="name the folder that holds config.json")


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        fix = "name the base model as model.source, and merge the adapter where it was trained"
        raise SourceError(f"is an adapter over {base!r}, not a model", where=str(folder), fix=fix)
    shards = {file.name: file for file in sorted(folder.glob("*.safetensors"))}
    if not shards:
        raise _no_weights(folder)
    _read_json(folder / "config.json")
    tensors = {name: _tensor_names(file) for name, file in shards.items()}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        placed = _read_json(index).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise SourceError("has no 'weight_map'", where=str(index), fix=FETCH_AGAIN)
        for tensor, shard in placed.items():
            if shard not in tensors:
                raise SourceError(f"is missing; {index.name} places tensors in it", where=str(folder / str(shard)), fix=FETCH_AGAIN)
            if tensor not in tensors[shard]:
                raise SourceError(f"lacks the tensor '{tensor}' that {index.name} places in it", where=str(shards[shard]), fix=FETCH_AGAIN)


def _no_weights(folder: Path) -> SourceError:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if gguf := [file for file in files if file.suffix == ".gguf"]:
        return SourceError("holds GGUF weights and no safetensors", where=str(folder), fix=f"name the file itself: {gguf[0]}")
    if pickles := [file.name for file in files if file.suffix in PICKLES]:
        return SourceError(
            f"holds weights only as a pickle ({pickles[0]}), which runs code when it is loaded; Workbench reads safetensors",
            where=str(folder),
            fix="convert it where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW_FOLDER)",
        )
    return SourceError("holds no *.safetensors file", where=str(folder), fix="name the folder of a model in the Hugging Face layout")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SourceError("is missing", where=str(file), fix="name the folder of a model in the Hugging Face layout")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"is not JSON: {error}", where=str(file), fix=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise SourceError("is not a JSON object", where=str(file), fix=FETCH_AGAIN)
    return value


def _tensor_names(file: Path) -> set[str]:
    """The names in a file's header; opening it compares every offset with the file's size."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise EnvironmentFault("reading weights needs the package safetensors", fix="pip install 'workbench[train]'") from error
    try:
        with safe_open(file, framework="numpy") as opened:
            names = set(opened.keys())
    except SafetensorError as error:
        raise SourceError(f"is cut short or damaged: {error}", where=str(file), fix=FETCH_AGAIN) from error
    if not names:
        raise SourceError("holds no tensors", where=str(file), fix=FETCH_AGAIN)
    return names
