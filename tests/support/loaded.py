"""The tiny model of `tiny.py`, loaded: one a process, with weights large enough that its answers differ and vary."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.support.tiny import make_model
from workbench.models.load import load_model, load_tokenizer


@cache
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32, and tokenizer. Whoever changes them changes them for everybody."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder) / "tiny")
        return spread(load_model(path, dtype="float32").eval()), load_tokenizer(path)


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Multiply the weights of a fresh model, whose every answer is otherwise one token repeated with probability 1/vocabulary."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def logprobs(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """(T, vocabulary): the log-probabilities of what follows each token, from one plain forward pass."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)  # type: ignore[no-any-return]
