"""``python -m benchmarks.readme``: write the tables of ``benchmarks/results`` into README.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.results import markdown, quality_table
from benchmarks.language_tables import perplexity_table
from benchmarks.training import summary
from benchmarks.training.text import summary as text_summary

__all__ = ["fill", "main"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TRAINING = RESULTS / "training"


def fill(readme: str, name: str, table: str) -> str:
    """Return ``readme`` with ``table`` between the markers called `name`; ``ValueError`` without exactly one pair."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if readme.count(start) != 1 or readme.count(end) != 1 or readme.index(start) > readme.index(end):
        raise ValueError(f"README.md must hold {start} and then {end}, each once")
    before, rest = readme.split(start)
    return f"{before}{start}\n{table.strip()}\n{end}{rest.split(end)[1]}"


def _four_bits(readme: str) -> str:
    """Fill in the tables about four-bit weights, as far as they were measured.

    ``python -m benchmarks.run --suite linear_w4 --suite conv2d_w4 --suite smollm2 --suite gptq --name four-bit``
    measures the first, ``--suite perplexity --name perplexity`` the second, ``--suite minilm_w4 --name minilm-w4`` the
    third.
    """
    speed, quality, small = (RESULTS / f"{name}.json" for name in ("four-bit", "perplexity", "minilm-w4"))
    if speed.exists():
        document = json.loads(speed.read_text(encoding="utf-8"))
        readme = fill(readme, "four_bit", markdown(document["rows"], document["machine"]))
    if quality.exists():
        document = json.loads(quality.read_text(encoding="utf-8"))
        rows = markdown(document["rows"], document["machine"])
        readme = fill(readme, "perplexity", f"{perplexity_table(document['details'])}\n{rows}")
    if small.exists():
        document = json.loads(small.read_text(encoding="utf-8"))
        readme = fill(readme, "minilm_w4", markdown(document["rows"], document["machine"]))
    return readme


def main(argv: Sequence[str] | None = None) -> int:
    """Fill README.md, or with ``--check`` only say whether it is up to date (exit status 1 when it is not)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--results", type=Path, default=RESULTS / "latest.json")
    options = parser.parse_args(argv)
    document = json.loads(options.results.read_text(encoding="utf-8"))
    if document["quick"]:
        print(f"{options.results} is from a --quick run; its numbers mean nothing")
        return 1
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = fill(before, "results", markdown(document["rows"], document["machine"]))
    after = fill(after, "pruning", quality_table(document["details"]))
    after = _four_bits(after)
    for name, markdown_of in (("fashion_mnist", summary.markdown), ("django_languages", text_summary.markdown)):
        trained = TRAINING / f"{name}.json"
        if trained.exists():
            after = fill(after, name, markdown_of(json.loads(trained.read_text(encoding="utf-8"))))
    if options.check:
        print("README.md is up to date" if after == before else "README.md does not show the latest results")
        return int(after != before)
    path.write_text(after, encoding="utf-8")
    print(f"README.md: {len(document['rows'])} rows written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
