"""Measured rows, the results file (JSON) and the table (Markdown)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.target import Target, unit_suffix
from benchmarks.targets import TARGETS

__all__ = ["Measurement", "Report", "markdown", "quality_table", "write"]

VERDICTS = {True: "reached", False: "**missed**", None: ""}


@dataclass(frozen=True)
class Measurement:
    """The value of one row, the times it came from (µs), and a note; without a value the note says why."""

    key: str
    value: float | None
    times_us: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class Report:
    """Everything one run measured."""

    machine: dict[str, object]
    ceilings: dict[str, object]
    measurements: list[Measurement] = field(default_factory=list)
    details: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    quick: bool = False

    def row(self, target: Target) -> dict[str, object]:
        """Return the finished row of ``target``: value, bound, verdict, times, note."""
        found = next((m for m in self.measurements if m.key == target.key), None)
        value = None if found is None else found.value
        note = "not measured in this run" if found is None else found.note
        met = False if value is None and target.bound is not None else None if value is None else target.is_met(value)
        return {
            **asdict(target),
            "value": value,
            "met": met,
            "times_us": {} if found is None else found.times_us,
            "note": note,
        }

    def rows(self, suites: Sequence[str] | None = None) -> list[dict[str, object]]:
        """Return the rows of ``suites`` (all when ``None``) in order; unmeasured ones stay in, as missed."""
        return [self.row(target) for target in TARGETS if suites is None or target.suite in suites]


def value_text(value: object, unit: str) -> str:
    """Return a number as the table shows it: four digits for plain agreement numbers, else two."""
    if not isinstance(value, (int, float)):
        return "not measured"
    return f"{value:.4f}" if unit == "" else f"{value:.2f}{unit_suffix(unit)}"


def markdown(rows: Sequence[dict[str, object]], machine: dict[str, object]) -> str:
    """Return the table for README and results, losses included."""
    lines = [
        f"Measured {str(machine['date'])[:10]} on {machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, kernels `{machine['isa']}`, commit `{str(machine['commit'])[:12]}`. "
        "Medians of interleaved runs: layers and models call by call, kernels by themselves in runs of calls (so that "
        "weights are in the caches, unless a row says otherwise).",
        "",
        "| what | against | target | measured | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        known = {name: row[name] for name in ("key", "suite", "title", "baseline", "bound", "unit", "lower_is_better")}
        target = Target(**known)  # type: ignore[arg-type]
        measured = value_text(row["value"], target.unit)
        met = row["met"]
        verdict = VERDICTS[met if isinstance(met, bool) else None]
        note = f" {row['note']}" if row["note"] else ""
        lines.append(
            f"| {target.title} | {target.baseline} | {target.bound_text()} | {measured} | {(verdict + note).strip()} |"
        )
    bound = [row for row in rows if row["bound"] is not None]
    reached = sum(row["met"] is True for row in bound)
    lines += ["", f"{reached} of {len(bound)} targets reached."]
    return "\n".join(lines) + "\n"


def quality_table(details: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """Return the table of what one-shot pruning costs (``details["pruning"]``); empty where it was not measured."""
    rows = details.get("pruning", [])
    if not rows:
        return ""
    criteria = [name for name in rows[0] if name not in ("model", "pattern", "sparsity")]
    lines = [
        "One-shot pruning with calibration, no training afterwards: mean cosine to the dense embeddings "
        "(all-MiniLM-L6-v2, encoder), share of equal first choices (EfficientNet-Lite0).",
        "",
        f"| network | pattern | sparsity | {' | '.join(criteria)} |",
        f"| --- | --- | --- |{' --- |' * len(criteria)}",
    ]
    for row in rows:
        scores = " | ".join(f"{row[name]:.3f}" for name in criteria)
        lines.append(f"| {row['model']} | {row['pattern']} | {row['sparsity']:.0%} | {scores} |")
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path, suites: Sequence[str] | None = None, name: str = "latest") -> tuple[Path, Path]:
    """Write ``<name>.json`` and ``<name>.md`` into ``folder``, each by rename, and return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = report.rows(suites)
    document = {
        "machine": report.machine,
        "ceilings": report.ceilings,
        "quick": report.quick,
        "failures": report.failures,
        "rows": rows,
        "details": report.details,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    paths = folder / f"{name}.json", folder / f"{name}.md"
    table = "\n".join(filter(None, (markdown(rows, report.machine), quality_table(report.details))))
    for path, content in zip(paths, (text, table), strict=True):
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    return paths
