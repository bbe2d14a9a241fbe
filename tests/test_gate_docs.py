"""The page about the gate and the GitHub Actions example keep their word: what they use exists, and the example's script works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tests.support.judged import judged
from tests.support.workplace import NOBODY, Workplace
from workbench.cli import app
from workbench.recipe.load import load

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "gate.md").read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load((DOCS / "github-actions.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["gate"]["steps"]
SCRIPTS = [step["run"] for step in STEPS if "run" in step]


def used() -> list[list[str]]:
    """Every call of `workbench`, as words."""
    text = "\n".join(SCRIPTS)
    calls = [line.strip() for line in text.splitlines() if re.match(r"\s*workbench ", line)]
    calls += re.findall(r"`(workbench [^`]+)`", PAGE) + re.findall(r"\$ (workbench .+)", PAGE)
    return [call.partition(">")[0].split() for call in calls]


def test_its_verbs_and_options_exist() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    calls = used()
    assert {"run", "check", "gate", "drift", "simulate"} <= {call[1] for call in calls}
    for _, verb, *rest in calls:
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, verb
    named = set(re.findall(r"`(--[a-z-]+)`", PAGE))
    assert named <= {option for parameter in commands["gate"].params for option in parameter.opts}


def test_the_workflow_is_one() -> None:
    assert set(WORKFLOW) == {"name", True, "env", "concurrency", "permissions", "jobs"}, "YAML reads `on` as true"
    assert set(WORKFLOW[True]) == {"pull_request", "push"}
    assert all(len({"uses", "run"} & step.keys()) == 1 for step in STEPS)
    cached = [step["with"]["path"] for step in STEPS if step.get("uses", "").startswith("actions/cache/")]
    assert cached == [".workbench", ".workbench"]
    (keyed,) = [step for step in STEPS if "OPENAI_API_KEY" in step.get("env", {})]
    assert keyed["env"]["OPENAI_API_KEY"] == "${{ secrets.OPENAI_API_KEY }}"
    assert STEPS[-1]["run"] == f"exit ${{{{ steps.{keyed['id']}.outputs.code }}}}"


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [("accuracy: 0.5", 0, "PASS"), ("accuracy: 1.0", 3, "FAIL"), ("accuracy: 2", 2, "no verdict, exit code 2: see the log")],
)
def test_its_script_turns_a_verdict_into_a_comment(tmp_path: Path, tiny_model: Path, setting: str, code: int, says: str) -> None:
    place = judged(tmp_path / "desk", tiny_model)
    place.write("desk.yaml", (place.folder / "desk.yaml").read_text().replace("accuracy: 0.5", setting))
    (script,) = [step["run"] for step in STEPS if step.get("id") == "run"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": NOBODY,
        "RECIPE": "desk.yaml",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
    }
    done = subprocess.run(["bash", "-e", "-c", script], cwd=place.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == f"code={code}\n"
    comment = (place.folder / "comment.md").read_text()
    assert comment.startswith(f"**gate: {says}**\n```\n")
    assert comment.endswith("```\n")
    assert (tmp_path / "summary").read_text() == comment
    if code != 2:
        assert f"SIMULATED {says}: base is" in comment
        assert "look 1 at this test set" in comment


def test_the_recipe_on_the_page_is_valid(tmp_path: Path, tiny_model: Path) -> None:
    place = judged(tmp_path / "desk", tiny_model)
    sections = "".join(f"{line.strip()}\n" for line in PAGE.splitlines() if re.match(r"    (baseline|gate): ", line))
    text = (place.folder / "desk.yaml").read_text().partition("baseline:")[0] + sections
    recipe = load(place.write("page.yaml", text), []).recipe
    assert recipe.baseline is not None
    assert recipe.gate is not None
    assert recipe.gate.slices == ["source"]


def test_the_verdict_on_the_page_is_what_is_said(tmp_path: Path) -> None:
    from tests.test_gate_verb import arguments, write

    write(tmp_path / "gpt.csv", "gpt", [1] * 270 + [0] * 30)
    write(tmp_path / "tuned.csv", "tuned", [1] * 265 + [0] * 15 + [1] * 10 + [0] * 10)
    said = Workplace(tmp_path)(*arguments("tuned.csv")).out.splitlines()
    shown = PAGE.partition("--margin 0.05\n")[2].splitlines()[:4]
    assert [line.removeprefix("    ") for line in shown] == said[:4]


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert all((DOCS / link).exists() for link in links)
