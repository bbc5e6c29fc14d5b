"""Accuracy against speed of the rows of a training table, as one SVG picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["Point", "draw", "points"]

#: Name, how many times as fast as torch fp32, percent.
Point = tuple[str, float, float]

_DENSE = "dense"
_STUDENT, _INT8, _OTHER = "tab:green", "tab:blue", "tab:gray"


def points(report: dict[str, Any], batch: str = "64") -> list[Point]:
    """The trained rows with a latency: accuracy is the mean over the seeds, speed that of the first seed.

    Args:
        report: of the table.
        batch: the batch size whose latency counts.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for line in report["rows"]:
        if line["epochs"]:  # networks that were pruned and not trained are far below
            found.setdefault(line["row"], []).append(line)
    return [
        (name, seen["fp32 eager"] / seen["this"], statistics.fmean(line["accuracy"] for line in lines))
        for name, lines in found.items()
        if (seen := lines[0].get("latency", {}).get(batch)) is not None
    ]


def draw(report: dict[str, Any], path: Path, task: str, batch: str = "64") -> Path:
    """Write the picture; the same report gives the same bytes.

    Args:
        report: of the table.
        path: the file, ``.svg``.
        task: the title.
        batch: as in `points`.
    """
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(report["dense"]["accuracy"], color="black", linewidth=0.8, linestyle="--")
    axes.annotate(_DENSE, (1.0, report["dense"]["accuracy"]), xytext=(2, 3), textcoords="offset points", fontsize=8)
    found = points(report, batch)
    middle = (min(speed for _, speed, _ in found) + max(speed for _, speed, _ in found)) / 2 if found else 0.0
    for name, speed, accuracy in found:
        place, side = ((5, -3), "left") if speed <= middle else ((-5, -3), "right")  # names stay inside
        colour = _STUDENT if name.startswith("student") else _INT8 if _is_int8(name) else _OTHER
        axes.plot([speed], [accuracy], "o", color=colour, markersize=5)
        axes.annotate(name, (speed, accuracy), xytext=place, textcoords="offset points", fontsize=7, ha=side)
    axes.set_xlabel(f"times as fast as torch fp32, batch {batch}")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(task, fontsize=10)
    axes.margins(x=0.2, y=0.12)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "fastcompress", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(str(path), metadata={"Date": None})
    return path


def _is_int8(name: str) -> bool:
    return "W8A8" in name or "full recipe" in name
