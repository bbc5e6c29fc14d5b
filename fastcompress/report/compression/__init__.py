"""The report on one compression: accuracy, size, latency of every stage, layers, as HTML, Markdown, PNG and JSON."""

from .build import compression_report
from .data import CompressionReport, ReportLayer, StageRow
from .files import load_compression_report

__all__ = ["CompressionReport", "ReportLayer", "StageRow", "compression_report", "load_compression_report"]
