"""What every test shares: the meaning of the markers (their names are in pyproject.toml)."""

from __future__ import annotations

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a `gpu` test where there is no GPU; torch is imported only if one was asked for."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
