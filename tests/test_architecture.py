"""Imports only point down. The floors and the other contracts are in pyproject.toml, [tool.importlinter]."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package below `root`, by the contracts in its pyproject.toml."""
    return subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)


def test_the_package_keeps_its_contracts() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("errors.py", "from workbench import digest", "Imports only point down"),
        ("recipe/schema.py", "from workbench import cli", "Imports only point down"),
        ("stray.py", "", "Imports only point down"),
        ("sources/reference.py", "def f():\n    import torch", "needs no training stack"),
        ("cli.py", "def f():\n    import torch", "only parses, calls and prints"),
        ("evaluation/outcomes.py", "def f():\n    import mlflow", "Only tracking talks to MLflow"),
    ],
)
def test_a_breach_is_found(module: str, line: str, contract: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "workbench", tmp_path / "workbench")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "workbench" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{re.escape(contract)}.* BROKEN", done.stdout), done.stdout
