"""What the plots show, for SVG and PNG alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .data import CompressionReport, StageRow

__all__ = ["Bar", "Point", "front", "history_curves", "latency_bars", "pareto_points"]


@dataclass(frozen=True)
class Point:
    """A model: milliseconds, score."""

    label: str
    x: float
    y: float
    color: int


@dataclass(frozen=True)
class Bar:
    """A model's milliseconds, and what is written behind the bar."""

    label: str
    value: float
    text: str
    color: int


Curves = list[tuple[str, list[tuple[float, float]]]]


def _color(report: CompressionReport, row: StageRow) -> int:
    return 0 if row.dense else 1 if row is report.compressed else 2


def pareto_points(report: CompressionReport, batch: int) -> list[Point]:
    """All scored models, of the dense one its fastest scored form, and only where there are two or more.

    The strongest dense form is there in any case, at the dense model's score where it has none of its own: its label
    says so.
    """
    scored = [row for row in report.stages if row.score is not None and row.seconds[batch]]
    dense = [row for row in scored if row.dense]
    best = min(dense, key=lambda row: row.seconds[batch] or 0.0, default=None)
    kept = [row for row in scored if not row.dense or row is best]
    points = [
        Point(row.name, (row.seconds[batch] or 0.0) * 1e3, row.score, _color(report, row))
        for row in kept
        if row.score is not None
    ]
    strongest = report.strongest_dense(batch)
    if strongest is not None and strongest.score is None and report.dense_score is not None:
        label, seconds = f"{strongest.name} (score of {report.stages[0].name})", strongest.seconds[batch] or 0.0
        points.append(Point(label.replace("(score of dense, ", "(score of "), seconds * 1e3, report.dense_score, 0))
    return points if len(points) > 1 else []


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, from the fastest to the most accurate.

    Example:
        >>> [p.label for p in front([Point("a", 1, 0.9, 0), Point("b", 2, 0.8, 0), Point("c", 3, 0.95, 0)])]
        ['a', 'c']
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def latency_bars(report: CompressionReport, batch: int) -> list[Bar]:
    """Every model that ran."""
    bars = []
    for row in report.stages:
        seconds, ratio = row.seconds[batch], report.speedup(batch, row)
        if seconds is not None and ratio is not None:
            bars.append(Bar(row.name, seconds * 1e3, f"{seconds * 1e3:.3g} ms, {ratio:.2f}×", _color(report, row)))
    return bars


def history_curves(report: CompressionReport) -> list[tuple[str, Curves]]:
    """``(name of the y axis, curves)`` of losses, sparsity in per cent and score; only what there is."""
    parts = dict.fromkeys(name for row in report.history for name in row["losses"])
    losses = [
        (name, [(float(r["epoch"]), float(r["losses"][name])) for r in report.history if name in r["losses"]])
        for name in parts
    ]
    if len(losses) == 2 and losses[0][1] == losses[1][1]:
        losses = losses[:1]  # the task's loss is all of it
    plots: list[tuple[str, Curves]] = [("loss", losses)] if losses else []
    for name, label, factor in (("sparsity", "sparsity, %", 100.0), ("score", "score", 1.0)):
        curve = [(float(r["epoch"]), factor * r[name]) for r in report.history if r[name] is not None]
        if curve:
            plots.append((label, [(name, curve)]))
    return plots
