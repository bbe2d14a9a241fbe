"""One tiny model for all tests of this folder that only read it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support.tiny import make_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, whose embedding is large enough for its head to be sure of anything (they are tied)."""
    folder = make_model(tmp_path_factory.mktemp("tiny") / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
