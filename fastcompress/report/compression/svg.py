"""Plots as inline SVG; colours come from the page's style, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .axes import Axis, axis_over
from .labels import placed_labels
from .series import Bar, Point, front

__all__ = ["bar_svg", "line_svg", "scatter_svg"]

_LEFT, _TOP, _BOTTOM = 62, 14, 46


def _open(width: int, height: int, label: str) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">'


def _text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    """Grid, numbers and names of both axes."""
    lines = []
    for tick in x.ticks:
        at = x.place(tick)
        lines.append(f'<path class="grid" d="M{at:.1f} {y.end:.1f}V{y.start:.1f}"/>')
        lines.append(_text(at, y.start + 17, f"{tick:.6g}", "middle", "tick"))
    for tick in y.ticks:
        at = y.place(tick)
        lines.append(f'<path class="grid" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>')
        lines.append(_text(x.start - 7, at + 4, f"{tick:.6g}", "end", "tick"))
    lines.append(_text((x.start + x.end) / 2, y.start + 37, x_label, "middle"))
    middle = (y.start + y.end) / 2
    lines.append(
        f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">'
        f"{escape(y_label)}</text>"
    )
    return lines


def scatter_svg(points: Sequence[Point], x_label: str, y_label: str, width: int = 560, height: int = 350) -> str:
    """Labelled points, and the line of those that no other beats in both."""
    values = [point.x for point in points]
    log = max(values) / min(values) > 4
    x = axis_over(values, _LEFT, width - 16, log=log, zero=not log, margin=0.12)
    y = axis_over([point.y for point in points], height - _BOTTOM, _TOP, margin=0.25)
    lines = [_open(width, height, f"{y_label} against {x_label}"), *_frame(x, y, x_label, y_label)]
    steps = [(x.place(p.x), y.place(p.y)) for p in front(points)]
    path = f"M{steps[0][0]:.1f} {steps[0][1]:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in steps[1:])
    lines.append(f'<path class="front" d="{path}H{x.end:.1f}"/>')
    places = [(x.place(p.x), y.place(p.y)) for p in points]
    ends = [*steps[1:], (x.end, steps[-1][1])]
    drawn = [(a, b - 1, c, b + 1) for (a, b), (c, _) in zip(steps, ends, strict=True)]
    drawn += [(c - 1, min(b, d), c + 1, max(b, d)) for (_, b), (c, d) in zip(steps, ends, strict=True)]
    labels = placed_labels(places, [p.label for p in points], (x.start, y.end, x.end, y.start), drawn)
    for point, (across, up), (left, base, anchor) in zip(points, places, labels, strict=True):
        lines.append(f'<circle class="s{point.color}" cx="{across:.1f}" cy="{up:.1f}" r="5"/>')
        lines.append(_text(left, base, point.label, anchor, "label"))
    return "\n".join([*lines, "</svg>"])


def line_svg(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    x_label: str,
    y_label: str,
    width: int = 360,
    height: int = 250,
) -> str:
    """Curves over the same x; with more than one, a legend above."""
    legend = 20 * len(curves) if len(curves) > 1 else 0
    points = [point for _, curve in curves for point in curve]
    x = axis_over([a for a, _ in points], _LEFT, width - 12, margin=0.03)
    x = Axis(x.low, x.high, x.start, x.end, tuple(tick for tick in x.ticks if tick == round(tick)))
    y = axis_over([b for _, b in points], height - _BOTTOM + legend, _TOP + legend)
    lines = [_open(width, height + legend, f"{y_label} against {x_label}"), *_frame(x, y, x_label, y_label)]
    for number, (name, curve) in enumerate(curves):
        color = number % 6 if legend else 1
        placed = [(x.place(a), y.place(b)) for a, b in curve]
        lines.append(f'<polyline class="l{color}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in placed)}"/>')
        lines += [f'<circle class="s{color}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in placed]
        if legend:
            at = 12 + 20 * number
            lines.append(f'<path class="l{color}" d="M{_LEFT} {at}h22"/>')
            lines.append(_text(_LEFT + 30, at + 4, name, css="label"))
    return "\n".join([*lines, "</svg>"])


def bar_svg(bars: Sequence[Bar], x_label: str, width: int = 560) -> str:
    """Horizontal bars from 0, their numbers at the end."""
    height = _TOP + 28 * len(bars) + _BOTTOM
    left = 24 + 6.7 * max(len(bar.label) for bar in bars)
    x = axis_over([bar.value for bar in bars], left, width - 110, zero=True, margin=0.0)
    lines = [_open(width, height, x_label)]
    bottom = height - _BOTTOM
    for tick in x.ticks:
        at = x.place(tick)
        lines.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        lines.append(_text(at, bottom + 17, f"{tick:.6g}", "middle", "tick"))
    lines.append(_text((x.start + x.end) / 2, bottom + 37, x_label, "middle"))
    for number, bar in enumerate(bars):
        top, end = _TOP + 28 * number + 5, x.place(bar.value)
        lines.append(
            f'<rect class="s{bar.color}" x="{left:.1f}" y="{top}" width="{max(1.0, end - left):.1f}" height="18"/>'
        )
        lines.append(_text(left - 8, top + 13, bar.label, "end", "label"))
        lines.append(_text(end + 6, top + 13, bar.text, css="label"))
    return "\n".join([*lines, "</svg>"])
