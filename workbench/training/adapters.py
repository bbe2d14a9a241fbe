"""Which weights are trained: a LoRA adapter over frozen weights, or all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel, set_seed

from workbench.errors import TrainingError
from workbench.models.load import load_model
from workbench.recipe.schema import Train


def trainable_model(folder: Path, train: Train, *, dtype: str, attention: str, trust_remote_code: bool) -> PreTrainedModel | PeftModel:
    """Load the base model and make what the recipe trains trainable.

    Args:
        folder: the base model.
        dtype: precision of weights that stay frozen; all-weights training holds them in float32 and computes in `launch.mixed_precision`.
        attention: name of the attention implementation.

    Raises:
        TrainingError: a target module or a layer count that the model does not have.
    """
    set_seed(train.seed)  # before the adapter's weights are drawn
    model = load_model(
        folder,
        dtype="float32" if train.method == "full" else dtype,
        quantize_4bit=train.method == "qlora",
        trust_remote_code=trust_remote_code,
        attn_implementation=attention,
    )
    if train.method == "full":
        return model
    config = lora_config(model, train)
    if train.method == "qlora":
        _keep_differentiable(model)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=train.gradient_checkpointing)
    return get_peft_model(model, config)


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Hold 4-bit weights in the layout that backward knows, also through evaluations.

    On CPUs with AVX-512 bf16, bitsandbytes (0.49 to 0.50) repacks them in the first forward pass in evaluation mode, for a kernel
    without a gradient. Training after that goes on without an error, and no gradient reaches the layers below.
    """
    from bitsandbytes.nn import Linear4bit  # only what trains over 4 bits needs the library

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def lora_config(model: PreTrainedModel, train: Train) -> LoraConfig:
    """PEFT's configuration for the recipe's adapter (LoRA: Hu et al. 2021, arXiv:2106.09685).

    Raises:
        TrainingError: as for `trainable_model`.
    """
    names = linear_names(model)
    targets = names if train.target_modules == "all-linear" else train.target_modules
    unknown = sorted(set(targets) - set(names))
    if unknown:
        raise TrainingError(
            f"the model has no linear layer called {unknown[0]!r}", where="train.target_modules", fix=f"choose among {', '.join(names)}"
        )
    modules = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = sorted(set(train.modules_to_save) - modules)
    if missing:
        raise TrainingError(
            f"the model has no module called {missing[0]!r}", where="train.modules_to_save", fix="name modules such as embed_tokens"
        )
    depth = model.config.get_text_config().num_hidden_layers
    if train.layers is not None and train.layers > depth:
        raise TrainingError(f"the model has {depth} layers, fewer than {train.layers}", where="train.layers", fix=f"choose at most {depth}")
    return LoraConfig(
        r=train.rank,
        lora_alpha=train.alpha if train.alpha is not None else 2 * train.rank,
        lora_dropout=train.dropout,
        target_modules=list(targets),
        modules_to_save=train.modules_to_save or None,
        layers_to_transform=list(range(depth - train.layers, depth)) if train.layers is not None else None,
        use_dora=train.dora,
        use_rslora=train.rslora,
        task_type="CAUSAL_LM",
    )


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last name parts of the linear layers inside the transformer blocks, such as `q_proj`; the output head is not one of them."""
    head = model.get_output_embeddings()
    linear = (module for module in model.named_modules() if isinstance(module[1], torch.nn.Linear) and module[1] is not head)
    return sorted({name.rsplit(".", 1)[-1] for name, _ in linear})
