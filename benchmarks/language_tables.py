"""The table of what weights in groups cost a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["perplexity_table"]


def perplexity_table(details: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """Return the table of ``details["perplexity"]``; empty where it was not measured."""
    rows = details.get("perplexity", [])
    if not rows:
        return ""
    dense = float(str(rows[0]["perplexity"]))
    lines = [
        f"SmolLM2-135M-Instruct, every linear but the tied head, symmetric; perplexity of fp32 {dense:.3f}. Windows of "
        "512 tokens for calibration; text: the Python language reference and scikit-learn's data set descriptions, "
        "split by document.",
        "",
        "| weights | group | algorithm | windows | perplexity | against fp32 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows[1:]:
        value = float(str(row["perplexity"]))
        parts = (row["scheme"], row["group"], row["algorithm"], row["windows"] or "none")
        lines.append(f"| {' | '.join(map(str, parts))} | {value:.3f} | {value / dense - 1:+.2%} |")
    return "\n".join(lines) + "\n"
