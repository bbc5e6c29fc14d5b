"""The text table as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.training.summary import origin, table

__all__ = ["markdown"]


def markdown(report: dict[str, Any]) -> str:
    """What the task is, the table, and how to make it again."""
    dense = report["dense"]
    lines = [
        f"Language identification on Django's own translations ({report['languages']} languages, no message in both "
        f"training and test), test accuracy; dense network: {dense['accuracy']:.2f}%, {dense['bytes'] / 1e6:.2f} MB. "
        "Mean ± standard deviation over seeds where there are several. Milliseconds at batch 1 and 64; in brackets the "
        "speed-up over the strongest dense form of torch (fp32, compiled, bf16) and over fp32 eager.",
        "",
        *table(report),
        "",
        origin(report),
    ]
    return "\n".join(lines) + "\n"
