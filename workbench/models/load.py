"""Load tokenizers and weights from a model folder. Safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import SourceError
from workbench.models.quiet import hushed_gptqmodel, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Folder, inside a quantised model's, of an adapter that stays over it in 16 bits.
ADAPTER = "adapter"


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, padding on the left (the side that generation needs).

    Raises:
        SourceError: there is none, it is damaged, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code, local_files_only=True, padding_side="left"
        )
    except Exception as error:  # the tokenizers library raises bare exceptions for files it cannot read
        raise SourceError(
            f"the tokenizer cannot be loaded: {_first_line(error)}", where=str(directory), fix="the folder needs tokenizer.json"
        ) from error
    if tokenizer.eos_token_id is None:
        raise SourceError(
            "the tokenizer has no end-of-sequence token, so a trained model would never stop",
            where=str(directory),
            fix='set "eos_token" in tokenizer_config.json',
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by position, never by token id, so sharing is safe
    return tokenizer


def load_model(
    directory: Path, *, dtype: str = "bfloat16", quantize_4bit: bool = False, trust_remote_code: bool = False, **options: Any
) -> PreTrainedModel:
    """The folder's causal language model.

    Args:
        dtype: precision of the weights; of the computation when `quantize_4bit` is set.
        quantize_4bit: hold the linear layers in bitsandbytes NF4 with double quantisation (Dettmers et al. 2023, QLoRA).
        options: handed to `from_pretrained`.

    Raises:
        SourceError: the weights are missing, damaged, not safetensors, or not those of the model that config.json describes.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quiet()
    if quantize_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the name
            **options,
        )
    except (OSError, SafetensorError, ValueError, StrictDataclassError) as error:
        raise _unusable(directory, _first_line(error)) from error
    wrong = [("is missing", sorted(found["missing_keys"])), ("has another shape", sorted(key[0] for key in found["mismatched_keys"]))]
    for what, tensors in wrong:  # transformers fills such weights with random numbers and goes on
        if tensors:
            raise _unusable(directory, f"{tensors[0]} {what}" + (f", and {len(tensors) - 1} more" if tensors[1:] else ""))
    return model


def load_candidate(directory: Path, *, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    """A model as it is served: 16-bit or quantised, with the adapter that lies over it if there is one; on its device, ready to answer.

    Raises:
        SourceError: as for `load_model`; also a quantised folder whose library is not installed.
    """
    quantized_by = quantization(directory)
    if quantized_by is None:
        return load_model(directory, dtype=dtype, trust_remote_code=trust_remote_code).to(device()).eval()
    if quantized_by == "gptq":
        hushed_gptqmodel()
    try:  # quantised weights are laid out for the device they are loaded to
        model = load_model(directory, dtype=dtype, trust_remote_code=trust_remote_code, device_map={"": device()})
    except ImportError as error:
        extra = {"gptq": "quantize", "compressed-tensors": "compressed"}.get(quantized_by, "train")
        what = f"its weights were quantised by {quantized_by}, whose library is not installed: {_first_line(error)}"
        raise SourceError(what, where=str(directory), fix=f"pip install 'workbench[{extra}]'") from error
    if (directory / ADAPTER).is_dir():
        model = with_adapter(model, directory / ADAPTER)
    return model.eval()


def with_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The same model, its layers carrying an adapter that is not merged into them."""
    hushed_gptqmodel()  # PEFT imports it
    from peft import PeftModel

    carrying: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).get_base_model()
    return carrying


def quantization(directory: Path) -> str | None:
    """How the folder's weights are quantised, by transformers' name of the method; None where they are not."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found = config.get("quantization_config")
        return None if found is None else str(found["quant_method"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is wrong with the file, loading it says


def device() -> str:
    """Where a model of this process runs: `cuda` when there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _unusable(directory: Path, why: str) -> SourceError:
    fix = "the folder needs whole .safetensors files that fit its config.json; fetch the model again"
    return SourceError(f"the weights cannot be loaded: {why}", where=str(directory), fix=fix)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
