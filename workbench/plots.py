"""Pictures of a run, drawn from its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def pareto(report: Mapping[str, Any], path: Path) -> bool:
    """Draw score against size on disk for a model and its quantised copies; dominated ones are hollow. An SVG file.

    Returns:
        Whether there was something to draw: two or more candidates that were measured beside each other.
    """
    rows = [row for row in report["candidates"] if row["dominated_by"] is not None and row["score"] is not None]
    if len(rows) < 2:
        return False
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "workbench"  # the same picture, the same file
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        size, score = row["size_bytes"] / 1e6, 100 * row["score"]
        spread = [[score - 100 * row["ci_low"]], [100 * row["ci_high"] - score]]
        colour = "tab:blue" if row["parent"] is None else "tab:orange"
        face = "white" if row["dominated_by"] else colour
        axes.errorbar(size, score, yerr=spread, fmt="o", color=colour, markerfacecolor=face, markersize=8, capsize=3)
        label = f"{row['name']} (picked)" if row["selected"] else row["name"]
        axes.annotate(label, (size, score), xytext=(8, 6), textcoords="offset points", fontsize=9)
    axes.set_xlabel("size on disk (MB)")
    axes.set_ylabel(f"{report['task']['metric']}: mean score (%), 95% interval")
    axes.set_title(f"{report['run']['recipe']}: hollow = dominated in score, size, memory and speed", fontsize=10)
    axes.set_xlim(left=0)
    axes.margins(x=0.18, y=0.2)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    return True
