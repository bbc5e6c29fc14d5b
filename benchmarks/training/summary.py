"""The image table as Markdown: means and standard deviations over seeds, and which goals are reached."""

from __future__ import annotations

import statistics
from typing import Any

__all__ = ["goals", "markdown", "origin", "table"]

FULL = "90% 4x4, gradual + distillation + W8A8"
SPARSEST = "95% 4x4, full recipe"
ALONE, DISTILLED = "student (¼ of the parameters), alone", "student (¼ of the parameters), distilled"


def _by_row(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in report["rows"]:
        rows.setdefault(line["row"], []).append(line)
    return rows


def _spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def goals(report: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """Goal, what was measured, and whether it is reached (None: not measured yet)."""
    rows, dense = _by_row(report), float(report["dense"]["accuracy"])
    found: list[tuple[str, str, bool | None]] = []

    def drop(name: str, bound: float, title: str) -> None:
        if name not in rows:
            return found.append((title, "not measured", None))
        lost = dense - statistics.fmean(line["accuracy"] for line in rows[name])
        return found.append((title, f"{lost:.2f} points, {_seeds(len(rows[name]))}", lost <= bound))

    drop(FULL, 0.3, "full recipe at 90% loses at most 0.3 points")
    drop(SPARSEST, 1.0, "full recipe at 95% loses at most 1.0 point")
    for batch in ("1", "64"):
        seen = next((line["latency"][batch] for line in rows.get(FULL, []) if "latency" in line), None)
        title = f"full recipe at 90% runs at least 5× faster than torch fp32, batch {batch}"
        ratio = None if seen is None else seen["fp32 eager"] / seen["this"]
        found.append(
            (title, "not measured" if ratio is None else f"{ratio:.2f}×", None if ratio is None else ratio >= 5)
        )
    title = "a student gains from distillation by more than 2 standard deviations"
    if len(rows.get(ALONE, [])) > 1 and len(rows.get(DISTILLED, [])) > 1:
        alone, taught = ([line["accuracy"] for line in rows[name]] for name in (ALONE, DISTILLED))
        gain, noise = (
            statistics.fmean(taught) - statistics.fmean(alone),
            max(statistics.stdev(alone), statistics.stdev(taught)),
        )
        found.append((title, f"{gain:+.2f} points, the larger sd is {noise:.2f}", gain > 2 * noise))
    else:
        found.append((title, "not measured", None))
    return found


def markdown(report: dict[str, Any]) -> str:
    """The table, the goals, and how to make them again."""
    dense = report["dense"]
    lines = [
        f"Fashion-MNIST, test accuracy; dense network: {dense['accuracy']:.2f}%, {dense['bytes'] / 1e6:.2f} MB. Mean ± "
        "standard deviation over seeds where there are several. Milliseconds at batch 1 and 64; in brackets the "
        "speed-up over the strongest dense form of torch (fp32, channels-last, compiled, bf16) and over fp32 eager.",
        "",
        *table(report),
    ]
    lines += ["", "| goal | measured | |", "| --- | --- | --- |"]
    words = {True: "reached", False: "**missed**", None: ""}
    lines += [f"| {title} | {seen} | {words[met]} |" for title, seen, met in goals(report)]
    lines += ["", origin(report)]
    return "\n".join(lines) + "\n"


def table(report: dict[str, Any]) -> list[str]:
    """The rows with accuracy, size and latency, as lines of Markdown."""
    lines = [
        "| network | seeds | accuracy | MB | batch 1 | batch 64 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in _by_row(report).items():
        cells = [name, str(len(found)), _spread([line["accuracy"] for line in found]), f"{found[0]['bytes'] / 1e6:.2f}"]
        for batch in ("1", "64"):
            seen = found[0].get("latency", {}).get(batch)
            cells.append("" if seen is None else _latency(seen))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def origin(report: dict[str, Any]) -> str:
    """Which commands, machine and commits the numbers are from."""
    place = report["machine"]
    commits = dict.fromkeys(str(line.get("commit", place["commit"]))[:12] for line in report["rows"])
    told = ", ".join(f"`{commit}`" for commit in commits)
    return (
        f"`{report['command']}`, {place['cpu']}, {place['threads']} threads, torch {place['torch']}; rows judged and "
        f"timed at commit {told}."
    )


def _latency(seen: dict[str, float]) -> str:
    this = seen["this"]
    return f"{this:.2f} ({seen['strongest dense'] / this:.1f}×, {seen['fp32 eager'] / this:.1f}×)"
