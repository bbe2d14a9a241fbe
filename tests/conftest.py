"""What every test shares: the meaning of the markers (their names are in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.workplace import Workplace

settings.register_profile("house", deadline=None)  # how long an example takes says more about the machine than about the code
settings.load_profile("house")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a `gpu` test where there is no GPU; torch is imported only if one was asked for."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model folder; copy or link it, never write to it."""
    from tests.support.tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """A workplace in which `workbench run desk.yaml` has trained, merged, evaluated and tracked; read it, or run it again."""
    from tests.support.workplace import GUARDS, RECIPE, SECRETS, TRAIN, furnish

    place = furnish(tmp_path_factory.mktemp("finished"), RECIPE, TRAIN, GUARDS)
    (place.folder / "model").symlink_to(tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        said = place("run", "desk.yaml", "--json")
    assert said.code == 0, said.err
    place.write("stdout.json", said.out)
    place.write("stderr.txt", said.err)
    return place


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """A workplace in which `workbench run desk.yaml` has trained, quantised, measured and selected; read it, or run it again."""
    from importlib.util import find_spec

    from tests.support.workplace import NOBODY, QUANTIZE, RECIPE, TRAIN, furnish

    if find_spec("gptqmodel") is None:
        pytest.skip("GPTQModel is not installed: make install")
    place = furnish(tmp_path_factory.mktemp("quantized"), RECIPE, TRAIN, QUANTIZE)
    (place.folder / "model").symlink_to(tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        said = place("run", "desk.yaml", "--json")
    assert said.code == 0, said.err
    place.write("stdout.json", said.out)
    place.write("stderr.txt", said.err)
    return place
