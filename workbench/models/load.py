"""Load tokenizers and weights from a model folder. Safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import SourceError
from workbench.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def device() -> str:
    """Where a model of this process runs: `cuda` when there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _unusable(directory: Path, why: str) -> SourceError:
    fix = "the folder needs whole .safetensors files that fit its config.json; fetch the model again"
    return SourceError(f"the weights cannot be loaded: {why}", where=str(directory), fix=fix)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
