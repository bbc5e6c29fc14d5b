"""The one plot of the results, written as SVG by hand: time over dense against sparsity, measured and ideal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_sweep"]

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 64, 40, 24, 56


def draw_sweep(points: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw ``time_over_dense`` and ``density`` (the ideal) of each point over ``sparsity`` and return ``path``."""
    highest = max(1.0, *(float(p["time_over_dense"]) for p in points)) * 1.05

    def place(sparsity: float, value: float) -> str:
        x = LEFT + sparsity * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def line(values: list[tuple[float, float]], colour: str, dash: str = "") -> str:
        joined = " ".join(place(*value) for value in values)
        return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'

    measured = [(float(p["sparsity"]), float(p["time_over_dense"])) for p in points]
    ideal = [(float(p["sparsity"]), float(p["density"])) for p in points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">Block-sparse int8 linear (16x4): time against sparsity</text>',
    ]
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = place(tick, 0.0).split(",")
        parts.append(f'<text x="{x}" y="{float(y) + 18:.1f}" text-anchor="middle">{tick:.0%}</text>')
        x, y = place(0.0, tick).split(",")
        parts.append(f'<text x="{float(x) - 8:.1f}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
        parts.append(line([(0.0, tick), (1.0, tick)], "#dddddd"))
    parts += [
        line([(0.0, 1.0), (1.0, 1.0)], "#888888", "2 3"),
        line(ideal, "#2a9d8f", "6 4"),
        line(measured, "#c8553d"),
        *(
            f'<circle cx="{place(*p).split(",")[0]}" cy="{place(*p).split(",")[1]}" r="3" fill="#c8553d"/>'
            for p in measured
        ),
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">blocks that are zero</text>',
        f'<text x="{WIDTH - RIGHT - 210}" y="{TOP + 24}" fill="#c8553d">measured time / dense int8 time</text>',
        f'<text x="{WIDTH - RIGHT - 210}" y="{TOP + 44}" fill="#2a9d8f">ideal: proportional to the blocks</text>',
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path
