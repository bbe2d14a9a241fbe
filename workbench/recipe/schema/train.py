"""Sections `train`, `launch` and `merge`: how weights are trained, by which processes, and folded into one model."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from workbench.recipe.schema.base import Fault, Fraction, PathText, Positive, Section, Seed, Text, agree


class EarlyStopping(Section):
    """Stop when the validation metric no longer improves, and keep the best checkpoint."""

    metric: Literal["loss", "token_accuracy", "score"] = Field(
        default="loss", description="score: the task's own metric on the validation rows"
    )
    patience: Positive = Field(default=3, description="evaluations without improvement before stopping")
    min_delta: float = Field(default=0.0, ge=0, description="smallest change that counts as improvement")


class Train(Section):
    """Supervised fine-tuning (TRL's SFTTrainer on PEFT adapters, or on all weights)."""

    method: Literal["lora", "qlora", "full"] = Field(
        default="lora", description="an adapter, an adapter on 4-bit weights (Dettmers et al. 2023, arXiv:2305.14314), or all weights"
    )
    rank: Positive = Field(default=16, description="LoRA rank")
    alpha: Positive | None = Field(default=None, description="LoRA alpha; default: twice the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="LoRA dropout")
    target_modules: Literal["all-linear"] | list[Text] = Field(default="all-linear", description="which linear layers get an adapter")
    modules_to_save: list[Text] = Field(
        default=[], description="modules trained in full beside the adapter; most serving stacks cannot load these"
    )
    serve_adapter: bool = Field(
        default=True,
        description="the adapter itself will be served, so refuse one that serving stacks cannot load; false: only the merged weights are",
    )
    layers: Positive | None = Field(default=None, description="adapt only the last N transformer layers (backward stops there)")
    dora: bool = Field(default=False, description="weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353)")
    rslora: bool = Field(default=False, description="rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)")
    loss: Literal["completion", "assistant", "all"] = Field(
        default="completion", description="supervise the last answer, every assistant turn, or every token"
    )
    epochs: float = Field(default=1.0, gt=0, description="passes over the training rows; a fraction is allowed")
    max_steps: Positive | None = Field(default=None, description="optimizer steps; overrides epochs")
    batch_size: Positive = Field(default=32, description="rows per process and forward pass")
    gradient_accumulation: Positive = Field(default=1, description="forward passes per optimizer step")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass: less memory, more time")
    packing: bool = Field(default=True, description="lay the rows of a batch end to end without padding; rows cannot attend to each other")
    learning_rate: float = Field(
        default=2e-4, gt=0, description="highest learning rate; full fine-tunes want about a tenth of an adapter's"
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up"
    )
    warmup: Fraction = Field(default=0.03, description="share of the steps over which the learning rate rises")
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = Field(
        default="adamw_torch", description="the 8-bit ones come from bitsandbytes and keep their state in a quarter of the memory"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    max_length: Positive = Field(default=1024, description="longest row in tokens, prompt and answer together")
    overflow: Literal["refuse", "drop", "truncate"] = Field(default="refuse", description="what to do with longer rows")
    eval_steps: Positive | None = Field(default=None, description="validation every N steps; default: ten times a run")
    save_steps: Positive | None = Field(default=None, description="checkpoint every N steps; default: twenty times a run")
    early_stopping: EarlyStopping | None = Field(default=None, description="stop when validation no longer improves; {} takes the defaults")
    seed: Seed = Field(default=0, description="set before anything random, adapter initialisation included")

    def steps(self, rows: int, processes: int) -> int:
        """Optimizer steps that a run over `rows` training rows takes."""
        per_step = self.batch_size * self.gradient_accumulation * processes
        return self.max_steps or max(1, math.ceil(math.ceil(rows / per_step) * self.epochs))

    @model_validator(mode="after")
    def _adapter_keys_need_an_adapter(self) -> Train:
        if self.method == "full":
            keys = ("rank", "alpha", "dropout", "target_modules", "modules_to_save", "layers", "dora", "rslora")
            # A value equal to the default is let through: a resolved recipe spells every default out.
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].get_default()]
            fix = "remove it, or use method `lora`"
            agree(*(Fault(key, f"`{key}` configures an adapter, but method `full` trains all weights", fix) for key in given))
        return self

    @model_validator(mode="after")
    def _warmup_is_used(self) -> Train:
        if self.scheduler == "constant" and self.warmup != type(self).model_fields["warmup"].get_default() and self.warmup:
            fix = "use scheduler `constant_with_warmup`, or leave `warmup` out"
            agree(Fault("warmup", "scheduler `constant` has no warmup", fix))
        return self


class Launch(Section):
    """Handed to `accelerate launch`."""

    num_processes: Positive = Field(default=1, description="processes over all machines: one per GPU, or one for the CPU")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="bf16", description="precision of the arithmetic; `no` computes in float32"
    )
    config_file: PathText | None = Field(
        default=None, description="an accelerate config (FSDP, DeepSpeed, several machines); see recipes/accelerate/"
    )
    threads: Positive | None = Field(default=None, description="CPU threads per process; default: cores divided by processes")


class Merge(Section):
    """Fold the adapter into the weights, in 16 bits, and prove that nothing changed."""

    check_prompts: Positive = Field(default=16, description="validation prompts answered by adapter and merged model")
    check_tokens: Positive = Field(default=16, description="greedy tokens compared per prompt")
    max_logit_difference: float = Field(default=1.0, gt=0, description="largest tolerated difference of a next-token logit")
