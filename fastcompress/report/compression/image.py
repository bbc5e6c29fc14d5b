"""A report's plots as one picture, drawn by matplotlib, which is optional."""

from __future__ import annotations

import io
from typing import Any

from .data import CompressionReport
from .series import front, history_curves, latency_bars, pareto_points
from .tables import summary_table

__all__ = ["as_png"]

_COLORS = ("#59636e", "#0b6bcb", "#b4530b", "#2c7a3f", "#7a3fa0", "#8a6d00")


def as_png(report: CompressionReport) -> bytes:
    """Accuracy against latency and latency for each batch size, and the history.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "CompressionReport.save: a .png needs matplotlib; pip install 'fastcompress[report]', or save as .html, "
            ".md or .json, which need nothing"
        ) from error
    draws: list[Any] = [
        lambda axes, points=points, batch=batch: _scatter(axes, points, batch)
        for batch in report.batches
        if (points := pareto_points(report, batch))
    ]
    draws += [
        lambda axes, bars=bars, batch=batch: _bars(axes, bars, batch)
        for batch in report.batches
        if (bars := latency_bars(report, batch))
    ]
    draws += [lambda axes, plot=plot: _lines(axes, *plot) for plot in history_curves(report)]
    across = 2
    down = max(1, -(-len(draws) // across))
    figure = Figure(figsize=(13, 1.2 + 3.8 * down), dpi=110, layout="constrained")
    words = "   ".join(f"{row[0]}: {row[3] or row[2]}" for row in summary_table(report).rows)
    figure.suptitle(f"{report.title}\n{words}".replace("$", r"\$"), fontsize=12)
    for number, draw in enumerate(draws, 1):
        draw(figure.add_subplot(down, across, number))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _scatter(axes: Any, points: Any, batch: int) -> None:
    best = front(points)
    axes.step([p.x for p in best], [p.y for p in best], where="post", linestyle="--", color=_COLORS[1], linewidth=1)
    for number, point in enumerate(points):
        axes.scatter([point.x], [point.y], color=_COLORS[point.color], zorder=3)
        above = 8 if number % 2 == 0 else -14
        axes.annotate(
            point.label.replace("$", r"\$"), (point.x, point.y), (0, above), textcoords="offset points", ha="center",
            fontsize=8,
        )  # fmt: skip
    axes.margins(0.3)
    axes.set(xlabel=f"latency at batch {batch}, ms", ylabel="score")
    axes.grid(alpha=0.3)


def _bars(axes: Any, bars: Any, batch: int) -> None:
    drawn = axes.barh([b.label.replace("$", r"\$") for b in bars], [b.value for b in bars],
                      color=[_COLORS[b.color] for b in bars])  # fmt: skip
    axes.bar_label(drawn, [bar.text for bar in bars], padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set(xlabel=f"latency at batch {batch}, ms")
    axes.grid(axis="x", alpha=0.3)


def _lines(axes: Any, label: str, curves: Any) -> None:
    for number, (name, curve) in enumerate(curves):
        color = _COLORS[number % 6 if len(curves) > 1 else 1]
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, color=color, label=name)
    if len(curves) > 1:
        axes.legend(fontsize=8)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
