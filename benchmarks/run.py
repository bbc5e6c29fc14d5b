"""``python -m benchmarks.run``: measure, compare with the targets, write ``benchmarks/results/``.

Exit status 1 when a part failed or a kernel measured above the machine's own ceiling (then the measurement is wrong); a
missed target is a result, not a failure.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import machine
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.plot import draw_sweep
from benchmarks.harness.results import Report, markdown, write
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import Budget
from fastcompress.ops import native

__all__ = ["SUITES", "main"]

RESULTS = Path(__file__).resolve().parent / "results"

SUITES: dict[str, str] = {
    "linear": "benchmarks.kernels.linear_w8a8",
    "conv2d": "benchmarks.kernels.conv2d_w8a8",
    "linear_w4": "benchmarks.kernels.linear_w4",
    "conv2d_w4": "benchmarks.kernels.conv2d_w4",
    "sparse": "benchmarks.kernels.sparse_w8a8",
    "sparse_fine": "benchmarks.kernels.sparse_fine",
    "sparse_float": "benchmarks.kernels.sparse_float",
    "sparse_conv": "benchmarks.kernels.sparse_conv",
    "sparse_sweep": "benchmarks.kernels.sparse_sweep",
    "bert_base": "benchmarks.models.bert_base",
    "bert_sparse": "benchmarks.models.bert_sparse",
    "pruning": "benchmarks.models.pruning",
    "minilm": "benchmarks.models.minilm",
    "efficientnet_lite0": "benchmarks.models.efficientnet_lite0",
    "smollm2": "benchmarks.models.smollm2",
    "gptq": "benchmarks.models.gptq_time",
    "minilm_w4": "benchmarks.models.minilm_w4",
    "perplexity": "benchmarks.models.perplexity",
    "peers": "benchmarks.peers.run",
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--suite", action="append", choices=sorted(SUITES), help="only this suite (repeatable)")
    parser.add_argument("--threads", type=int, default=2, help="threads for every candidate (default 2)")
    parser.add_argument("--seconds", type=float, default=0.7, help="seconds per candidate (default 0.7)")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all, to see that everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--name", help="name of the results file (default latest; quick with --quick, the suites with --suite)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen suites and return the exit status."""
    options = arguments(argv)
    if not native.available:
        print("benchmarks need the native kernels (fastcompress._C), which are not built; run `make build` first")
        return 1
    torch.set_num_threads(options.threads)
    suites = options.suite or list(SUITES)
    print("measuring the machine's ceilings")
    ceilings = Ceilings.measure(0.05 if options.quick else 0.5)
    for kind, seen in ceilings.operations.items():
        print(f"  {kind}: {seen / 1e9:.0f} Gop/s")
    report = Report(machine.describe(), ceilings.as_json(), quick=options.quick)
    budget = Budget(0.02, min_rounds=3, max_rounds=20) if options.quick else Budget(options.seconds)
    context = Context(report, ceilings, budget, options.quick)
    with torch.inference_mode():
        for suite in suites:
            with context.part(f"== {suite}"):
                importlib.import_module(SUITES[suite]).run(context)
    report.ceilings = ceilings.as_json()
    name = options.name or ("quick" if options.quick else "-".join(options.suite or ["latest"]))
    paths: tuple[Path, ...] = write(report, options.output, suites, name)
    if "sparse_sweep" in report.details:
        paths = (*paths, draw_sweep(report.details["sparse_sweep"], options.output / f"{name}-sparsity.svg"))
    print(markdown(report.rows(suites), report.machine))
    print("written:", *paths)
    for failure in report.failures:
        print("FAILED:", failure)
    return 1 if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
