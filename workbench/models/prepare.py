"""From a fetched source to the one layout everything else reads: a folder with safetensors, tokenizer and chat template."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path

from workbench.errors import SourceError
from workbench.models.quiet import quiet

#: Files of a model folder that are neither needed nor wanted: pickles may run code, the rest is for other frameworks.
UNWANTED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def from_gguf(file: Path, out: Path, dtype: str) -> None:
    """Write the model inside a GGUF file as safetensors in `dtype`. Quantised weights are dequantised, which restores no quality.

    Raises:
        SourceError: transformers cannot read this architecture or file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet()
    try:
        with redirect_stderr(io.StringIO()):  # transformers shows a bar of its own here, which cannot be turned off
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # the reader trusts the file: whatever it stumbles over, the file is to blame
        raise SourceError(
            f"the GGUF file cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=str(file),
            fix="fetch it again; if it is whole, its architecture is not one that transformers reads from GGUF",
        ) from error
    vars(model.config).pop("_model_name_or_path", None)  # a GGUF's free-text name is no path to load from
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)


def from_folder(folder: Path, out: Path, *, link: bool) -> None:
    """Take over a model folder's files; `link` shares the bytes with an immutable cache instead of copying them."""
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.suffix in UNWANTED or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        target = out / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            try:
                os.link(file.resolve(), target)
                continue
            except OSError:
                pass  # another file system: copy
        shutil.copyfile(file, target)
    adopt_autogptq(out)


def recast(folder: Path, dtype: str) -> None:
    """Store a model folder's weights in `dtype`; training all weights holds them in float32, serving does not need it."""
    import torch
    from safetensors.torch import load_file, save_file

    total = 0
    for file in folder.glob("*.safetensors"):
        tensors = {
            name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()
        }
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, file, metadata={"format": "pt"})
    for path, section, value in (
        (folder / "config.json", None, {"dtype": dtype}),
        (folder / "model.safetensors.index.json", "metadata", {"total_size": total}),
    ):
        if path.exists():
            content = json.loads(path.read_text())
            (content if section is None else content[section]).update(value)
            path.write_text(json.dumps(content, indent=2))


def refuse_nonfinite(folder: Path) -> None:
    """Refuse weights that are no numbers: a quantiser would spread one of them over a whole group, or give up much later.

    Raises:
        SourceError: names the tensor.
    """
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    fix = "train again with a lower learning rate, or fetch the model again"
                    raise SourceError(f"the tensor {name} holds values that are no numbers (NaN or infinity)", where=str(file), fix=fix)


def adopt_autogptq(folder: Path) -> None:
    """Bring a checkpoint in auto-gptq's own layout into the one that transformers, GPTQModel and vLLM read.

    auto-gptq wrote its settings into quantize_config.json only, and named the weights after them, such as
    gptq_model-4bit-128g.safetensors (or their index, where they are many). The tensors are the same.

    Raises:
        SourceError: quantize_config.json cannot be read, or says that the tensors are laid out otherwise.
    """
    settings, config = folder / "quantize_config.json", folder / "config.json"
    if not settings.exists() or not config.exists():
        return
    try:
        found, model = json.loads(settings.read_text(encoding="utf-8")), json.loads(config.read_text(encoding="utf-8"))
        if "quantization_config" in model:
            return
        kept = {key: found[key] for key in ("bits", "group_size", "desc_act", "sym") if key in found}
        model["quantization_config"] = {**kept, "damp_percent": found.get("damp_percent", 0.01), "quant_method": "gptq"}
        model["quantization_config"]["checkpoint_format"] = found.get("checkpoint_format", "gptq")
        _ = int(found["bits"]), int(found["group_size"])
        other = "marlin" if found.get("is_marlin_format") else found.get("quant_method") or "gptq"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"is not the settings file of a GPTQ checkpoint ({type(error).__name__}: {error})"
        raise SourceError(what, where=str(settings), fix="fetch the model again") from error
    if other != "gptq":  # auto-gptq also saved weights packed for one GPU kernel, and those of AWQ
        fix = "name a GPTQ checkpoint, or the 16-bit model"
        raise SourceError(f"says that the weights are in the {other} format, which only auto-gptq read", where=str(settings), fix=fix)
    config.unlink()  # may be a hard link into a cache: never write through it
    config.write_text(json.dumps(model, indent=2), encoding="utf-8")
    for ending in (".safetensors", ".safetensors.index.json"):
        files = sorted(folder.glob(f"*{ending}"))
        if len(files) == 1:
            files[0].rename(folder / f"model{ending}")


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the files that decide how text becomes tokens, byte for byte."""
    for pattern in (
        "tokenizer*",
        "chat_template*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "*.tiktoken",
        "*.model",
    ):
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)


def set_chat_template(folder: Path, template: Path) -> None:
    """Replace the chat template of a prepared model folder.

    Raises:
        SourceError: the file, or the folder's tokenizer_config.json, cannot be read.
    """
    try:
        text = template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the chat template cannot be read: {error}", where=str(template), fix="name a Jinja file in UTF-8") from error
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
        config.pop("chat_template", None)
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"is not a JSON object: {error}", where=str(config_file), fix="fetch the model again") from error
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)  # one of them would be taken for rows with tools
    for file, content in ((config_file, json.dumps(config, indent=1)), (template_file, text)):
        file.unlink(missing_ok=True)  # may be a hard link into a cache: never write through it
        file.write_text(content, encoding="utf-8")
