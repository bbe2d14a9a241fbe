"""The tiny recipe with its stages up to `train` in the store, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.chains import plan, run

#: Four steps, and validation by the task's own score after every second.
TRAINED = ("train.max_steps=4", "train.eval_steps=2", "train.early_stopping.metric=score", "train.early_stopping.patience=2")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the recipe; `plan(trained, *TRAINED)` finds `model`, `data` and `train` there."""
    folder = tmp_path_factory.mktemp("trained")
    run(plan(folder, *TRAINED), folder / ".workbench", ["model", "data", "train"])
    return folder
