"""What training a model will take: floating-point operations, memory, and how fast this machine multiplies matrices."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from workbench.data.render import Row
from workbench.models.facts import ModelFacts
from workbench.recipe.schema import Launch, Train

#: Shares of a bare matrix product's speed that a training step and a forward pass reach, all between the products included;
#: measured with LoRA on every layer of a model of 135 million weights, packed short rows, on a CPU with bfloat16 instructions.
TRAINING_EFFICIENCY, FORWARD_EFFICIENCY = 0.25, 0.6
#: Resident memory of Python with torch, transformers and TRL loaded, in bytes.
RUNTIME_BYTES = 600 * 2**20
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def forward_flops(facts: ModelFacts) -> int:
    """Floating-point operations of a forward pass for one token, output head aside: it is computed at few positions."""
    return 2 * facts.layers * facts.block_parameters


def validations(train: Train, launch: Launch, rows: int) -> int:
    """How often a training run over `rows` rows reads the validation rows."""
    steps = train.steps(rows, launch.num_processes)
    return steps // (train.eval_steps or max(1, steps // 10))


def computed_in(train: Train, launch: Launch, dtype: str) -> str:
    """Precision of the matrix products in training over weights held in `dtype`."""
    held = "float32" if train.method == "full" else dtype
    return {"bf16": "bfloat16", "fp16": "float16", "no": held}[launch.mixed_precision]


def training_flops(facts: ModelFacts, train: Train, tokens: int, supervised: int, rows: int) -> float:
    """Floating-point operations of a training run: 2 per weight and token forward, as much again for each gradient that is needed."""
    trained_layers = min(train.layers or facts.layers, facts.layers)
    weights = facts.block_parameters
    gradients = 4 if train.method == "full" else 2  # of activations and weights, or of activations only
    forward = forward_flops(facts) * (2 if train.gradient_checkpointing else 1)
    head = 2 * facts.vocab * facts.hidden * (3 if train.method == "full" else 2)
    passes = train.epochs
    if train.max_steps is not None and rows:
        passes = train.max_steps * train.batch_size * train.gradient_accumulation / rows
    return passes * (tokens * (forward + gradients * weights * trained_layers) + supervised * head)


def training_memory(facts: ModelFacts, train: Train, dtype: str, rows: Sequence[Row]) -> int:
    """Estimated peak memory of one training process in bytes: weights, gradients, AdamW's two moments, activations, logits."""
    if train.method == "full":
        fixed = facts.parameters * (4 + 4 + 8)
    else:
        names = (
            facts.linear_shapes
            if train.target_modules == "all-linear"
            else {name: facts.linear_shapes[name] for name in train.target_modules if name in facts.linear_shapes}
        )
        adapter = train.rank * sum(out + inner for out, inner in names.values()) * (train.layers or facts.layers)
        frozen = facts.parameters * BYTES[dtype]
        if train.method == "qlora":
            blocks = facts.block_parameters * facts.layers
            frozen = int(blocks * 0.53) + (facts.parameters - blocks) * BYTES[dtype]
        fixed = frozen + adapter * (4 + 4 + 8)
    batch = sorted((len(row.input_ids) for row in rows), reverse=True)[: train.batch_size]
    tokens = sum(batch)
    supervised = sum(sum(row.supervised) for row in rows) / max(1, len(rows)) * len(batch)
    # bytes a token: norms compute in float32, and each of an adapter's modules keeps an input of its own
    per_layer = (28 * facts.hidden + 5 * facts.intermediate) * 2
    kept = facts.layers * 2 * facts.hidden + per_layer if train.gradient_checkpointing else per_layer * (train.layers or facts.layers)
    return int(RUNTIME_BYTES + fixed + tokens * kept + supervised * facts.vocab * 4 * 3)


def matmul_speed(facts: ModelFacts, dtype: str, launch: Launch) -> float:
    """Floating-point operations a second of this machine for a matrix product of the model's own shape.

    The best of what is seen in a second with one thread, times the threads: what other processes take meanwhile hardly shows, where
    threads that wait for each other would lose most of their speed.
    """
    import torch

    from workbench.models.load import device

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = torch.randn(512, facts.hidden, device=device(), dtype=getattr(torch, dtype))
        other = torch.randn(facts.hidden, facts.intermediate, device=device(), dtype=getattr(torch, dtype))
        best, end = math.inf, time.perf_counter() + 1
        while time.perf_counter() < end or best is math.inf:
            started = time.perf_counter()
            float((one @ other)[0, 0])  # reading a value waits for a GPU
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    used = min(threads, launch.threads * launch.num_processes) if launch.threads is not None else threads
    return 2 * 512 * facts.hidden * facts.intermediate / best * (used if device() == "cpu" else 1)
