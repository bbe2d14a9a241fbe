"""Every notebook runs from top to bottom on a finished run, and says what `workbench show` says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.notebooks import run_notebook
from tests.support.workplace import Workplace

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_errors_and_confidence(finished: Workplace) -> None:
    report = json.loads((finished.folder / "stdout.json").read_text())
    said = run_notebook(NOTEBOOKS / "errors_and_confidence.ipynb", finished.state, report["run"]["id"])
    base, tuned = report["candidates"]
    assert f"base: {base['score']:.3f} ({base['ci_low']:.3f} to {base['ci_high']:.3f})" in said
    assert f"tuned: {tuned['score']:.3f} ({tuned['ci_low']:.3f} to {tuned['ci_high']:.3f})" in said
    assert f"difference: {tuned['difference_to_base']['estimate']:+.3f}" in said
    assert f"the most confident 100%: {tuned['score']:.3f}" in said


def test_no_notebook_is_left_out() -> None:
    assert [path.name for path in NOTEBOOKS.glob("*.ipynb")] == ["errors_and_confidence.ipynb"]
