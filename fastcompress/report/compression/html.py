"""A report as one HTML file that needs nothing else: no script, no file beside it, nothing from a network."""

from __future__ import annotations

from html import escape

from .data import CompressionReport
from .series import front, history_curves, latency_bars, pareto_points
from .style import STYLE
from .svg import bar_svg, line_svg, scatter_svg
from .tables import Table, all_tables

__all__ = ["as_html"]


def as_html(report: CompressionReport) -> str:
    """The page; every string that comes from the model, the recipe or the machine is escaped."""
    tables = all_tables(report)
    known = report.environment
    where = ", ".join(
        str(part)
        for part in (known.get("cpu"), _threads(known.get("threads")), known.get("isa"), f"torch {known.get('torch')}")
    )
    body = [f"<h1>{escape(report.title)}</h1>", f'<p class="note">{escape(where)}</p>', _cards(tables["summary"])]
    body += [f'<p class="note">{escape(tables["summary"].note)}</p>', *_latency(report)]
    for name, table in tables.items():
        if name == "summary":
            continue
        if name == "history":
            body += _history(report)
        body.append(_table(table))
    title = escape(report.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _threads(count: object) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _cards(summary: Table) -> str:
    """The rows of the summary: the change large, before and after below."""
    cards = [
        f'<div class="card"><span>{escape(name)}</span><b>{escape(change or after or before)}</b>'
        f"<span>{escape(before)} → {escape(after)}</span></div>"
        for name, before, after, change in summary.rows
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _latency(report: CompressionReport) -> list[str]:
    parts: list[str] = []
    plots = [(batch, points) for batch in report.batches if (points := pareto_points(report, batch))]
    if plots:
        figures = [
            _figure(f"batch {batch}", scatter_svg(points, f"latency at batch {batch}, ms", "score"))
            for batch, points in plots
        ]
        unbeaten = dict.fromkeys(point.label for _, points in plots for point in front(points))
        note = f"Up and to the left is better. On the dashed line, unbeaten in both: {'; '.join(unbeaten)}."
        parts += ["<h2>Accuracy against latency</h2>", f'<div class="plots">{"".join(figures)}</div>']
        parts.append(f'<p class="note">{escape(note)} Models without a score are not drawn.</p>')
    charts = [(batch, bars) for batch in report.batches if (bars := latency_bars(report, batch))]
    if charts:
        figures = [_figure(f"batch {batch}", bar_svg(bars, f"latency at batch {batch}, ms")) for batch, bars in charts]
        parts += ["<h2>Latency of every stage</h2>", f'<div class="plots">{"".join(figures)}</div>']
        parts.append('<p class="note">Behind the bars: how many times as fast as the strongest dense form.</p>')
    return parts


def _history(report: CompressionReport) -> list[str]:
    figures = [_figure(label, line_svg(curves, "epoch", label)) for label, curves in history_curves(report)]
    return ["<h2>Training</h2>", f'<div class="plots">{"".join(figures)}</div>'] if figures else []


def _figure(title: str, svg: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>\n{svg}</figure>"


def _table(table: Table) -> str:
    shown = [i for i in range(len(table.columns)) if any(row[i] for row in table.rows)]
    head = "".join(f'<th class="{table.columns[i][1]}">{escape(table.columns[i][0])}</th>' for i in shown)
    rows = []
    for number, row in enumerate(table.rows):
        cells = "".join(f'<td class="{_css(table, i, row[i])}">{escape(row[i])}</td>' for i in shown)
        strong = ' class="strong"' if number in table.strong else ""
        rows.append(f"<tr{strong}>{cells}</tr>")
    heading = f"<thead><tr>{head}</tr></thead>" if any(table.columns[i][0] for i in shown) else ""
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table>{heading}<tbody>\n'
        + "\n".join(rows)
        + f"\n</tbody></table></div>{note}"
    )


def _css(table: Table, column: int, cell: str) -> str:
    side = table.columns[column][1]
    if side == "right" or len(cell) <= 36:
        return side
    return f"{side} long" if len(cell) > 60 else f"{side} fold"
