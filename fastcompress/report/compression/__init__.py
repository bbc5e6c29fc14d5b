"""The report on one compression: accuracy, size, latency of every stage, layers, as HTML, Markdown, PNG and JSON."""

from .build import compression_report
from .data import CompressionReport, ReportLayer, StageRow

__all__ = ["CompressionReport", "ReportLayer", "StageRow", "compression_report"]
