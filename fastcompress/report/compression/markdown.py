"""A report as Markdown: its tables."""

from __future__ import annotations

from html import escape

from .data import CompressionReport
from .tables import Table, all_tables

__all__ = ["as_markdown"]


def as_markdown(report: CompressionReport) -> str:
    """All tables under headings, every string escaped."""
    parts = [f"# {_cell(report.title)}"]
    for table in all_tables(report).values():
        parts += [f"## {table.title}", _table(table)]
        if table.note:
            parts.append(_cell(table.note))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    shown = [i for i in range(len(table.columns)) if any(row[i] for row in table.rows)]
    lines = [[_cell(table.columns[i][0]) for i in shown]]
    lines.append(["---:" if table.columns[i][1] == "right" else "---" for i in shown])
    for number, row in enumerate(table.rows):
        cells = [_cell(row[i]) for i in shown]
        lines.append([f"**{cell}**" if cell and number in table.strong else cell for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str) -> str:
    text = escape(" ".join(value.split()), quote=False)
    for mark in "\\|*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return text
