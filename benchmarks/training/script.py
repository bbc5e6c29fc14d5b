"""The command line of a table and its files: what the image table and the text table share."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.training.checkpoint import write_json
from benchmarks.training.plot import draw

__all__ = ["digest", "known_rows", "parser", "reported", "write_table"]


def parser(module: str, description: str | None, data: str, dense: str, work: str) -> argparse.ArgumentParser:
    """The arguments ``train``, ``finish`` and ``check`` and their options.

    Args:
        module: what ``python -m`` runs.
        description: for ``--help``.
        data, dense, work: defaults of the options of these names.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("command", choices=("train", "finish", "check"))
    found.add_argument("--data", default=data, help=f"where the data lie ({data})")
    found.add_argument("--dense", default=dense, help="the dense network")
    found.add_argument("--work", default=work, help=f"checkpoints of the rows ({work})")
    found.add_argument("--row", action="append", help="only this row; may be repeated")
    found.add_argument("--seed", type=int, action="append", help="only this seed; may be repeated")
    found.add_argument("--threads", type=int, help="threads; the same bits on resuming need the same number")
    found.add_argument("--no-compile", action="store_true", help="finish: leave the compiled dense network out")
    return found


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def reported(path: Path, dense: str | Path) -> list[dict[str, Any]]:
    """The lines of the table so far, from its JSON file; none where they started from another dense network."""
    if not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    return report["rows"] if report["dense"].get("sha256") == digest(dense) else []


def known_rows(lines: Sequence[dict[str, Any]]) -> set[tuple[str, int]]:
    """Name and seed of each line."""
    return {(line["row"], line["seed"]) for line in lines}


def write_table(
    path: Path,
    fresh: Sequence[dict[str, Any]],
    names: Sequence[str],
    header: dict[str, Any],
    dense: str | Path,
    module: str,
    markdown: Callable[[dict[str, Any]], str],
    task: str,
) -> None:
    """Write a table as JSON and, beside it, as Markdown and as a picture.

    Args:
        path: the JSON file. Lines in it whose checkpoints are gone, so that they are not among the fresh ones, stay.
        fresh: new lines.
        names: of all rows, in order.
        header: what else is in the report; of the dense network its accuracy and bytes.
        dense: the file of the dense network.
        module: what ``python -m`` runs.
        markdown: makes the table of the report.
        task: title of the picture.
    """
    judged = known_rows(fresh)
    lines = [*fresh, *(line for line in reported(path, dense) if (line["row"], line["seed"]) not in judged)]
    report = {
        **header,
        "dense": {**header["dense"], "sha256": digest(dense)},
        "rows": sorted(lines, key=lambda line: (names.index(line["row"]), line["seed"])),
        "machine": machine.describe(),
        "command": f"python -m {module} train && python -m {module} finish",
    }
    write_json(path, report)
    path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    draw(report, path.with_suffix(".svg"), task)
