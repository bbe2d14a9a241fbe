"""What a model's configuration says about its size, without loading a weight or importing torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import SourceError


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder-only transformer.

    Attributes:
        architecture: such as `LlamaForCausalLM`.
        model_type: transformers' name of the family, such as `llama`.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocab: counts and widths.
        context: longest sequence in tokens that the model was made for.
        tied: whether the output head shares the embedding's weights.
    """

    architecture: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(output width, input width) of the linear layers of one transformer block with a gated MLP, by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }

    @property
    def block_parameters(self) -> int:
        """Weights in the linear layers of one block."""
        return sum(out * inner for out, inner in self.linear_shapes.values())

    @property
    def parameters(self) -> int:
        """All weights, norms left out (under 0.1% of them)."""
        return self.layers * self.block_parameters + self.vocab * self.hidden * (1 if self.tied else 2)


def read_facts(directory: Path) -> ModelFacts:
    """Read `config.json` of a model folder.

    Raises:
        SourceError: the file is missing or does not describe a decoder-only transformer.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {**config, **config.get("text_config", {})}
        heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
        return ModelFacts(
            architecture=str((config.get("architectures") or [config["model_type"]])[0]),
            model_type=str(config.get("model_type", "unknown")),
            layers=_count(config, "num_hidden_layers"),
            hidden=hidden,
            intermediate=_count(config, "intermediate_size"),
            heads=heads,
            kv_heads=_count(config, "num_key_value_heads", heads),
            head_dim=_count(config, "head_dim", hidden // heads),
            vocab=_count(config, "vocab_size"),
            context=_count(config, "max_position_embeddings"),
            tied=bool(config.get("tie_word_embeddings", True)),  # the one value that transformers 4 leaves out when it saves
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            f"not the configuration of a decoder-only transformer ({type(error).__name__}: {error})",
            where=str(path),
            fix="name a folder in Hugging Face's layout with a config.json, or a .gguf file",
        ) from error


def _count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config[key] if default is None or config.get(key) is not None else default
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {value!r}, not a positive whole number")
    return value
