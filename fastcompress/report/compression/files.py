"""Writing a report: the suffix of the path says how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcompress.formats.atomic import publish, temporary_file

from .data import CompressionReport, ReportLayer, StageRow
from .html import as_html
from .image import as_png
from .markdown import as_markdown

__all__ = ["FORMATS", "load_compression_report", "save"]


def _json(report: CompressionReport) -> str:
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, default=str) + "\n"


#: Suffix → what makes the file's content.
FORMATS: dict[str, Callable[[CompressionReport], str | bytes]] = {
    ".html": as_html,
    ".md": as_markdown,
    ".png": as_png,
    ".json": _json,
}


def save(report: CompressionReport, path: Path) -> None:
    """Write the whole file or, after an error, none."""
    make = FORMATS.get(path.suffix.lower())
    if make is None:
        raise ValueError(
            f"CompressionReport.save: the suffix of {path.name!r:.80} is {path.suffix!r}; allowed are "
            f"{', '.join(FORMATS)}"
        )
    content = make(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path.parent) as (file, temporary):
        file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
        publish(file, temporary, path)


def load_compression_report(path: str | Path) -> CompressionReport:
    """Read what ``report.save("x.json")`` wrote.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no such report.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_compression_report: {path} does not exist")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stages = [{**row, "seconds": {int(n): s for n, s in row["seconds"].items()}} for row in values["stages"]]
        return CompressionReport(
            values["title"],
            values["accuracy"]["dense"],
            values["accuracy"]["compressed"],
            tuple(values["batches"]),
            tuple(StageRow(**row) for row in stages),
            tuple(ReportLayer(**layer) for layer in values["layers"]),
            tuple(values["history"]),
            values["recipe"],
            tuple(values["given_up"]),
            values["environment"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"load_compression_report: {path} is no report that CompressionReport.save wrote as JSON "
            f"({type(error).__name__}: {error})"
        ) from error
