"""Which code computes a model's linear layers: what a quantised checkpoint is loaded into depends on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: What computes a model in which nothing is quantised.
DENSE = "Linear"


def kernel(model: PreTrainedModel | PeftModel) -> str:
    """The class names of the quantised linear layers inside the transformer blocks, sorted and joined by commas.

    `Linear4bit` and `Linear8bitLt` are bitsandbytes', such as `TorchAtenLinear` or `MarlinLinear` are GPTQModel's. compressed-tensors
    keeps torch's class and changes what it does, so its layers are told by their scheme: `compressed-tensors Linear`. `Linear` when
    no layer is quantised. Blocks only: the embedding and the head usually stay as they are.
    """
    layers = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers)
    blocks = next(lists, model)
    return ", ".join(sorted({_name(module) for module in blocks.modules() if _quantised(module)})) or DENSE


def _quantised(module: nn.Module) -> bool:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return _compressed(module) or any(tensor.dim() > 1 and _packed(tensor.dtype) for tensor in own)


def _packed(dtype: torch.dtype) -> bool:
    """Whether it holds packed weights: integers, or floats of under 16 bits. Booleans are masks."""
    return dtype is not torch.bool and (not dtype.is_floating_point or dtype.itemsize < 2)


def _compressed(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and getattr(module, "quantization_scheme", None) is not None


def _name(module: nn.Module) -> str:
    return f"compressed-tensors {type(module).__name__}" if _compressed(module) else type(module).__name__
