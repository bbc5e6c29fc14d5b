"""The result of a sensitivity analysis: points, a table, a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from .curves_svg import svg_chart

__all__ = ["SensitivityCurves", "SensitivityPoint"]


@dataclass(frozen=True)
class SensitivityPoint:
    """The model's quality with a single layer pruned.

    Attributes:
        layer: the layer's name.
        pattern: name of the pattern.
        sparsity: pruned fraction of that layer.
        value: what ``eval_fn`` returned, higher is better.
        weight_elems: elements of the layer's weight.
        elem_bytes: bytes of one of them when dense.
    """

    layer: str
    pattern: str
    sparsity: float
    value: float
    weight_elems: int
    elem_bytes: int = 4


@dataclass(frozen=True)
class SensitivityCurves:
    """One curve per layer and pattern.

    Attributes:
        baseline: quality of the unpruned model.
        points: in the order of layers, patterns, rising sparsity.
        criterion: how the weights were chosen.
        skipped: pattern → layer → why it has no curve.

    Example:
        >>> curves.curve("fc1", "16x4")
        [(0.5, 0.912), (0.7, 0.9), (0.8, 0.871), (0.9, 0.66)]
    """

    baseline: float
    points: tuple[SensitivityPoint, ...]
    criterion: str = "magnitude"
    skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Names of the layers with a curve."""
        return list(dict.fromkeys(point.layer for point in self.points))

    @property
    def patterns(self) -> list[str]:
        """Names of the patterns with a curve."""
        return list(dict.fromkeys(point.pattern for point in self.points))

    def curve(self, layer: str, pattern: str) -> list[tuple[float, float]]:
        """(sparsity, value) of one layer, rising; empty when there is none."""
        return sorted((p.sparsity, p.value) for p in self.points if (p.layer, p.pattern) == (layer, pattern))

    def table(self) -> str:
        """A Markdown table: a row per layer and pattern, a column per sparsity, the change against the baseline."""
        levels = sorted({point.sparsity for point in self.points})
        header = ["layer", "pattern", *(f"{100 * level:.4g}%" for level in levels)]
        lines = [f"Change of the score ({self.baseline:.6g} unpruned) when one layer is pruned, {self.criterion}:", ""]
        lines += ["| " + " | ".join(header) + " |", "| --- | --- |" + " ---: |" * len(levels)]
        for layer in self.layers:
            for pattern in self.patterns:
                values = dict(self.curve(layer, pattern))
                if values:
                    cells = [f"{values[s] - self.baseline:+.4g}" if s in values else "" for s in levels]
                    lines.append("| " + " | ".join([layer or "(the model)", pattern, *cells]) + " |")
        return "\n".join(lines)

    def plot(self, path: str | PathLike[str]) -> Path:
        """Draw the curves into a file: ``.svg`` needs nothing, any other format needs matplotlib.

        Returns:
            The path.

        Raises:
            ImportError: another format than SVG, and matplotlib is not installed.

        Example:
            >>> curves.plot("sensitivity.svg")
        """
        path = Path(path)
        series = [
            (f"{layer or '(the model)'} {pattern}", [(0.0, self.baseline), *self.curve(layer, pattern)])
            for pattern in self.patterns
            for layer in self.layers
            if self.curve(layer, pattern)
        ]
        if path.suffix.lower() == ".svg":
            path.write_text(svg_chart(series, "sparsity of the layer", "score"), encoding="utf-8")
        else:
            _matplotlib_chart(series, path)
        return path


def _matplotlib_chart(series: list[tuple[str, list[tuple[float, float]]]], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"SensitivityCurves.plot: {path.name!r} needs matplotlib, which is not installed; write a .svg file instead"
        ) from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for label, points in series:
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)
    axes.set_xlabel("sparsity of the layer")
    axes.set_ylabel("score")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
