"""A tiny model whose answers differ and vary, to be quantised."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with larger weights, in a folder of its own; copy or link it, never write to it."""
    from tests.support.loaded import spread
    from workbench.models.load import load_model

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("lively") / "model"))
    spread(load_model(tiny_model)).save_pretrained(folder)
    return folder
