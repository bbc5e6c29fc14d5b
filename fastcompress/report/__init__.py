"""Measuring, explaining and checking compressed models."""

from fastcompress.report.benchmark import BenchmarkResult, BenchmarkRow, benchmark
from fastcompress.report.compression import CompressionReport, compression_report, load_compression_report
from fastcompress.report.environment import cpu_model, environment, git_commit, isa_name, library_version
from fastcompress.report.explain import Explanation, explain
from fastcompress.report.measure import compare, median_seconds, rotate
from fastcompress.report.rows import LayerRow
from fastcompress.report.size import size_bytes
from fastcompress.report.verify import verify

__all__ = [
    "BenchmarkResult",
    "BenchmarkRow",
    "CompressionReport",
    "Explanation",
    "LayerRow",
    "benchmark",
    "compare",
    "compression_report",
    "cpu_model",
    "environment",
    "explain",
    "git_commit",
    "isa_name",
    "library_version",
    "load_compression_report",
    "median_seconds",
    "rotate",
    "size_bytes",
    "verify",
]
