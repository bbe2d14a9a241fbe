"""The README keeps its word: its recipe is the shipped one, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from workbench.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_recipe_is_the_quickstart() -> None:
    recipe = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    assert f"```yaml\n{recipe}```" in README


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE))))
def test_its_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_its_verbs_exist() -> None:
    verbs = set(re.findall(r"(?:`|^    )workbench ([a-z]+)", README, re.MULTILINE))
    assert {"init", "check", "run", "show", "ui", "sync", "data", "schema"} <= verbs
    assert verbs <= set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
