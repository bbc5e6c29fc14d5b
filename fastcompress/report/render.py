"""Tables as text: one place that knows rich."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["milliseconds", "table", "text", "times"]

#: Width of tables that are not printed to a terminal, in characters.
_FILE_WIDTH = 180


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """A table from ``(heading, "left" | "right")`` columns and rows of plain strings; empty columns are left out."""
    result = Table(
        title=title,
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown = [index for index in range(len(columns)) if not rows or any(row[index] for row in rows)]
    for index in shown:
        heading, side = columns[index]
        if side == "right":
            result.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
        else:
            result.add_column(heading, overflow="fold")
    for row in rows:
        result.add_row(*(row[index].replace("[", r"\[") for index in shown))
    return result


def text(renderable: RenderableType, width: int | None = None) -> str:
    """``renderable`` as plain text, as wide as the terminal unless ``width`` (characters) says otherwise."""
    columns = width or max(80, shutil.get_terminal_size((_FILE_WIDTH, 24)).columns)
    console = Console(file=io.StringIO(), width=columns, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def milliseconds(seconds: float | None) -> str:
    """``1.234`` for 0.001234 s; empty for None."""
    return "" if seconds is None else f"{seconds * 1e3:.4g}"


def times(ratio: float | None) -> str:
    """``3.10×``; empty for None."""
    return "" if ratio is None else f"{ratio:.2f}×"
