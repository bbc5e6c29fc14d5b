"""The plot of the results, written as SVG by hand: time over dense against sparsity, measured and ideal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_sweep"]

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 440, 64, 40, 24, 56
HIGHEST = 2.0  # lines that begin above it are cut there

#: Block → what it is, and its colour.
LINES = {
    "16x4": ("int8 16x4", "#1d3557"),
    "4x4": ("int8 4x4", "#457b9d"),
    "1x4": ("int8 1x4", "#6fa8dc"),
    "16x1": ("float32 16x1", "#c8553d"),
    "1x1": ("float32 unstructured", "#e9a15b"),
    "16x2": ("bfloat16 16x2", "#7a5195"),
}


def _place(sparsity: float, value: float) -> tuple[float, float]:
    x = LEFT + sparsity * (WIDTH - LEFT - RIGHT)
    return x, HEIGHT - BOTTOM - min(value, HIGHEST) / HIGHEST * (HEIGHT - TOP - BOTTOM)


def _line(values: Sequence[tuple[float, float]], colour: str, dash: str = "", width: float = 2) -> str:
    joined = " ".join("{:.1f},{:.1f}".format(*_place(*value)) for value in values)
    return (
        f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
    )


def _circle(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _text(x: float, y: float, text: str, rest: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {rest}>{text}</text>'


def draw_sweep(points: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw ``time_over_dense`` of each block's points over ``sparsity``, beside the ideal, and return ``path``."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(
            LEFT, 24, "Sparse linear 128×3072×768: time over the fastest dense one of its precision", 'font-size="15"'
        ),
    ]
    for i in range(6):
        sparsity, value = i / 5, i / 5 * HIGHEST
        x, y = _place(sparsity, 0.0)
        parts.append(_text(x, y + 18, f"{sparsity:.0%}", 'text-anchor="middle"'))
        x, y = _place(0.0, value)
        parts.append(_text(x - 8, y + 4, f"{value:.1f}", 'text-anchor="end"'))
        parts.append(_line([(0.0, value), (1.0, value)], "#dddddd", width=1))
    parts.append(_line([(0.0, 1.0), (1.0, 1.0)], "#888888", "2 3"))
    parts.append(_line([(0.0, 1.0), (1.0, 0.0)], "#2a9d8f", "6 4"))
    legend = [("ideal: as many products as non-zeros", "#2a9d8f")]
    for block, (name, colour) in LINES.items():
        measured = [(float(p["sparsity"]), float(p["time_over_dense"])) for p in points if p["block"] == block]
        if not measured:
            continue
        parts.append(_line(measured, colour))
        parts += [_circle(*_place(*each), colour) for each in measured if each[1] <= HIGHEST]
        legend.append((name, colour))
    parts += [
        _text(WIDTH - RIGHT - 240, TOP + 18 + 18 * i, name, f'fill="{colour}"')
        for i, (name, colour) in enumerate(legend)
    ]
    parts += [_text(WIDTH / 2, HEIGHT - 12, "weights that are zero", 'text-anchor="middle"'), "</svg>"]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path
