"""Cost against sparsity from 0 to 99%, for each kind of blocks, and the sparsity from which on it pays."""

from __future__ import annotations

from benchmarks.harness.suite import Context
from benchmarks.harness.timing import Budget, interleave
from benchmarks.kernels.blocks import FORMS, Shape, dense_int8_calls, linear_call, pack_random
from benchmarks.kernels.sparse_float import dense_calls

__all__ = ["break_even", "run"]

SHAPE: Shape = (128, 3072, 768)
SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
BUDGET = Budget(0.2)

#: Block → the dense candidates of the same precision.
BASELINES = {
    "16x4": ("dense", "_int_mm"),
    "4x4": ("dense", "_int_mm"),
    "1x4": ("dense", "_int_mm"),
    "16x1": ("fp32",),
    "1x1": ("fp32",),
    "16x2": ("bf16",),
}


def run(context: Context) -> None:
    """Measure the ``sparse_sweep`` suite: every point goes into the report's details and the plot."""
    sweep = SWEEP[::4] if context.quick else SWEEP
    _, k, n = SHAPE
    ratios: dict[str, list[tuple[float, float]]] = {block: [] for block in BASELINES}
    points: list[dict[str, object]] = []
    for sparsity in sweep:
        with context.part(f"all kinds of blocks, {sparsity:.0%}"):
            calls = {**dense_int8_calls(SHAPE), **dense_calls(SHAPE)}
            density = {}
            for block in BASELINES:
                form = FORMS[block]
                packed, multiply_adds = pack_random(form, (n, k), sparsity)
                density[block] = multiply_adds / (k * n)
                calls[block] = linear_call(packed, SHAPE, is_float=form.is_float)
            times = interleave(calls, context.budget if context.quick else BUDGET, in_a_row=True)
            for block, baselines in BASELINES.items():
                ratio = times[block].median / min(times[name].median for name in baselines)
                ratios[block].append((sparsity, ratio))
                points.append(
                    {"block": block, "sparsity": sparsity, "density": density[block], "time_over_dense": ratio}
                )
    context.report.details["sparse_sweep"] = points
    for block, seen in ratios.items():
        context.add(f"sparse_sweep.{block}", break_even(seen), note="between the points of the sweep, linearly")


def break_even(ratios: list[tuple[float, float]]) -> float | None:
    """Return the lowest sparsity from which on sparse is faster, or None if it never is."""
    if ratios[-1][1] >= 1:
        return None
    last = max((i for i, (_, ratio) in enumerate(ratios) if ratio >= 1), default=-1)
    if last < 0:
        return ratios[0][0]
    (s0, r0), (s1, r1) = ratios[last], ratios[last + 1]
    return s0 + (s1 - s0) * (r0 - 1) / (r0 - r1)
