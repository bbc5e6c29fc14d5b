"""A line chart as SVG text, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["svg_chart"]

_LEFT, _TOP, _WIDTH, _HEIGHT, _LEGEND = 80, 20, 560, 380, 300
_LINE_HEIGHT = 16
#: Lightness alternates so that neighbouring curves differ in print, too.
_COLORS = [f"hsl({hue * 47 % 360}, 65%, {38 + 14 * (hue % 2)}%)" for hue in range(24)]


def svg_chart(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], x_label: str, y_label: str) -> str:
    """The curves in ``series`` (label, points) with axes and a legend, as a standalone SVG document.

    Example:
        >>> text = svg_chart([("fc", [(0.0, 1.0), (0.5, 0.9)])], "sparsity", "accuracy")
    """
    points = [point for _, curve in series for point in curve] or [(0.0, 0.0)]
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    height = max(_TOP + _HEIGHT + 60, _TOP + _LINE_HEIGHT * (len(series) + 1))
    width = _LEFT + _WIDTH + _LEGEND

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * _WIDTH, _TOP + (1 - up) * _HEIGHT

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    bottom = _TOP + _HEIGHT
    for tick in x_ticks:
        x = place(tick, y_ticks[0])[0]
        lines.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.6g}</text>')
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        lines.append(f'<path d="M{_LEFT} {y:.1f}H{_LEFT + _WIDTH}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    middle = _TOP + _HEIGHT / 2
    lines.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 42}" text-anchor="middle">{escape(x_label)}</text>')
    lines.append(
        f'<text x="20" y="{middle}" text-anchor="middle" transform="rotate(-90 20 {middle})">{escape(y_label)}</text>'
    )
    for index, (label, curve) in enumerate(series):
        color = _COLORS[index % len(_COLORS)]
        placed = [place(x, y) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in placed]
        y = _TOP + _LINE_HEIGHT * (index + 0.5)
        x = _LEFT + _WIDTH + 16
        lines.append(f'<path d="M{x} {y}h18" stroke="{color}" stroke-width="2"/>')
        lines.append(f'<text x="{x + 24}" y="{y + 4}">{escape(label)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, five or so, always two different ones."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = max(abs(low) * 0.05, 1e-3)
        low, high = low - pad, high + pad
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, last + 1)]
