"""Run a notebook's code cells in order, in a Python of their own, as a person would with "run all"."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run_notebook(notebook: Path, state: Path, run: str) -> str:
    """What the cells print.

    Args:
        notebook: the .ipynb file.
        state: the `.workbench` folder that it reads.
        run: id of the run that it reads.

    Raises:
        AssertionError: a cell failed.
    """
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells)
    environment = {**os.environ, "WORKBENCH_STATE": str(state), "WORKBENCH_RUN": run, "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
