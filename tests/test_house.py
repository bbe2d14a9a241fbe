"""The house: what is installed, what the lock says, and that the light verbs stay light."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.cli import app

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


# ---------------------------------------------------------------- the lock


def pins(name: str) -> dict[str, set[str]]:
    """The versions that a file of requirements/ pins, by package (several where they differ by Python version)."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if re.match(r"[a-zA-Z0-9]", line):
            requirement = Requirement(re.sub(r"\s*(\\|#.*)$", "", line))
            (version,) = requirement.specifier
            assert version.operator == "=="
            found.setdefault(canonicalize_name(requirement.name), set()).add(version.version)
    return found


TORCH, TRAIN, QUANTIZE, TEST = (pins(f"{name}.txt") for name in ("torch", "train", "quantize", "test"))


@pytest.mark.parametrize(
    ("wanted", "locked"),
    [
        (PROJECT["dependencies"], TRAIN | TORCH),
        *((EXTRAS[extra], TRAIN | TORCH) for extra in ("train", "baselines", "simulate")),
        (EXTRAS["quantize"], TRAIN | QUANTIZE | TORCH),
        *((EXTRAS[extra], TRAIN | QUANTIZE | TEST | TORCH) for extra in ("test", "compressed", "anthropic", "google")),
    ],
    ids=["core", "train", "baselines", "simulate", "quantize", "test", "compressed", "anthropic", "google"],
)
def test_the_lock_gives_what_pyproject_asks_for(wanted: list[str], locked: dict[str, set[str]]) -> None:
    for requirement in map(Requirement, wanted):
        if requirement.name == "workbench":  # an extra that includes another one
            continue
        versions = locked[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: {versions}; run `make lock`"


def test_the_lock_keeps_the_pins_chosen_by_hand() -> None:
    chosen = pins("pins.txt")
    assert chosen
    assert {name: (TRAIN | QUANTIZE)[name] for name in chosen} == chosen


def test_test_txt_adds_to_train_txt() -> None:
    assert not TRAIN.keys() & TEST.keys() and not QUANTIZE.keys() & (TRAIN | TEST).keys()


@pytest.mark.parametrize("name", ["train.txt", "quantize.txt", "test.txt"])
def test_every_pin_is_hashed_and_no_index_is_named(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())[1:]
    assert all(re.search(r"\n    --hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert not re.search(r"https?://|file:|--index|--extra-index|--find-links|--trusted-host", text)


def test_torch_and_what_its_build_brings_along_are_not_in_the_lock() -> None:
    assert list(TORCH) == ["torch"]
    assert not [name for name in TRAIN | QUANTIZE | TEST if re.match(r"(torch|triton|nvidia-.*|cuda-.*)$", name)]


def test_conda_gets_the_same_packages() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (packages,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    found: dict[str, set[str]] = {}
    for requirement in map(Requirement, packages):
        (version,) = requirement.specifier
        assert version.operator == "=="
        found.setdefault(canonicalize_name(requirement.name), set()).add(version.version)
    assert found == TORCH | TRAIN | QUANTIZE | TEST
    assert "pip" in environment["dependencies"]


# ---------------------------------------------------------------- the commands


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` as typed in a fresh shell, though these tests may run under `make test` themselves."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_make_says_which_python_is_missing(tmp_path: Path) -> None:
    done = make("install", f"VENV={tmp_path}/venv", "PYTHON=no-such-python")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("no 'no-such-python' here: install Python 3.11")
    assert not (tmp_path / "venv").exists()


def test_make_refuses_a_python_that_the_lock_is_not_for(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"  # answers as Python 3.10 would
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.13 && exit\nexit 1\n')
    old.chmod(0o755)
    done = make("install", f"VENV={tmp_path}/venv", f"PYTHON={old}")
    assert done.returncode == 2
    assert "is Python 3.10.13, the lock is for Python 3.11 to 3.13" in done.stderr.splitlines()[0]
    assert not (tmp_path / "venv").exists()


def test_quickstart_installs_no_test_tools() -> None:
    planned = make("--dry-run", "--always-make", "quickstart").stdout
    assert "--require-hashes --requirement requirements/train.txt" in planned
    assert "requirements/test.txt" not in planned
    assert "--no-build-isolation --require-hashes --requirement requirements/quantize.txt" in planned
    last = planned.splitlines()[-1]
    assert "workbench run recipes/quickstart.yaml $(cat .venv/.without-gptq" in last and last.endswith("|| [ $? -eq 3 ] || [ $? -eq 4 ]")


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    """What `pip install .` installs: the package alone, with its templates and its types, and the `workbench` command."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "workbench", source / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, source]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("workbench-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    expected = {
        path.relative_to(source).as_posix() for path in source.glob("workbench/**/*") if path.suffix in (".py", ".yaml", ".json", ".typed")
    }
    assert names == expected
    assert "workbench/py.typed" in names
    assert [name for name in names if name.startswith("workbench/recipe/templates/")]
    assert "workbench = workbench.cli:main" in entry_points


# ---------------------------------------------------------------- startup


def verbs(command: object = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb and sub-verb of the command line, and the bare command."""
    command = typer.main.get_command(app) if command is None else command
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*path, name))


def core_packages() -> set[str]:
    """The packages of an installation without extras."""
    found: set[str] = set()
    waiting = [Requirement(value) for value in PROJECT["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(value) for value in importlib.metadata.requires(name) or []]
    return found


def beyond_core(*arguments: str) -> set[str]:
    """Run `workbench ARGUMENTS` to its end; the packages it imported that an installation without extras does not have."""
    probe = (
        "import atexit, sys\n"
        "before = set(sys.modules)\n"
        "atexit.register(lambda: print('imported:', *{name.partition('.')[0] for name in set(sys.modules) - before}))\n"
        "from workbench.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", probe, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    modules = done.stdout.splitlines()[-1].removeprefix("imported:").split()
    assert "workbench" in modules
    owners = importlib.metadata.packages_distributions()
    packages = {canonicalize_name(owner) for module in modules for owner in owners.get(module, [])}
    return packages - core_packages() - {"workbench", "attrs"}  # rich looks whether attrs is there, and does without


@pytest.mark.parametrize("verb", list(verbs()), ids=lambda verb: " ".join(verb) or "workbench")
def test_help_needs_no_more_than_the_core(verb: tuple[str, ...]) -> None:
    assert beyond_core(*verb, "--help") == set()


@pytest.mark.parametrize("options", [(), ("--resolved",)], ids=["plain", "resolved"])
def test_check_needs_no_more_than_the_core(options: tuple[str, ...]) -> None:
    assert beyond_core("check", *options, str(QUICKSTART)) == set()


def test_the_core_is_small() -> None:
    heavy = {"accelerate", "bitsandbytes", "datasets", "mlflow", "numpy", "peft", "pyarrow", "scipy", "torch", "transformers", "trl"}
    assert not core_packages() & heavy


def test_check_answers_within_a_second() -> None:
    """The best of five, in processor time: what the command needs, not what else the machine was doing."""
    seconds = []
    for _ in range(5):
        start = os.times()
        subprocess.run([Path(sys.executable).parent / "workbench", "check", QUICKSTART], cwd=ROOT, check=True, capture_output=True)
        end = os.times()
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert min(seconds) < 1, seconds
