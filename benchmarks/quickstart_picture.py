"""The README's picture, drawn from a finished quickstart run: scores with their intervals, and the loss while training.

    python benchmarks/quickstart_picture.py [--out benchmarks/quickstart.svg]

Reads the latest run in `.workbench`, the same report that `workbench show --json` prints. Needs matplotlib, which MLflow brings along.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from workbench.report import find_run, read

mpl.rcParams["svg.hashsalt"] = "workbench"  # the same run, the same file


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "quickstart.svg")
    parser.add_argument("--state", type=Path, default=Path(".workbench"))
    options = parser.parse_args()
    report = read(find_run(options.state.absolute(), "headline-sarcasm"))
    artifact = next(stage["artifact"] for stage in report["stages"] if stage["name"] == "train")
    history = [json.loads(line) for line in (options.state / "store" / artifact / "history.jsonl").read_text().splitlines()]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3), width_ratios=[1, 1.4], layout="constrained")
    rows = report["candidates"]
    for place, row in enumerate(rows):
        error = [[row["score"] - row["ci_low"]], [row["ci_high"] - row["score"]]]
        left.barh(place, row["score"], xerr=error, color="#b8c4ce" if row["kind"] == "base" else "#2f6f8f", capsize=3)
        ink = "black" if row["kind"] == "base" else "white"
        left.text(0.02, place, f"{row['name']}  {100 * row['score']:.1f}%", va="center", color=ink)
    left.set(yticks=[], xlim=(0, 1), title=f"right answers on {rows[0]['n']} unseen headlines", xlabel="accuracy, 95% interval")
    left.axvline(0.5, color="black", linewidth=0.7, linestyle=":")
    steps = [event for event in history if "loss" in event]
    checks = [event for event in history if "eval_loss" in event]
    right.plot([event["step"] for event in steps], [event["loss"] for event in steps], color="#b8c4ce", label="training batch")
    right.plot([event["step"] for event in checks], [event["eval_loss"] for event in checks], "o-", color="#2f6f8f", label="validation")
    right.set(title="loss", xlabel="step", ylim=(0, 0.8))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.out, metadata={"Date": None})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
