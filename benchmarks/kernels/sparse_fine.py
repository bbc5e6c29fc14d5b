"""Block-sparse ``linear_w8a8`` with small blocks: 4x4 against 16x4, 1x4 against dense int8, and the bytes of each."""

from __future__ import annotations

from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.kernels.blocks import FORMS, Shape, dense_int8_calls, linear_call, pack_random
from benchmarks.sparse_targets import FINE_SHAPES, SPARSITIES
from benchmarks.target import shape_name

__all__ = ["run"]

BLOCKS = ("16x4", "4x4", "1x4")


def run(context: Context) -> None:
    """Measure every row of the ``sparse_fine`` suite."""
    for shape in FINE_SHAPES:
        for sparsity in SPARSITIES:
            with context.part(f"small blocks {shape_name(shape)}, {sparsity:.0%}"):
                shape_rows(context, shape, sparsity)
    for block in BLOCKS:
        packed, _ = pack_random(FORMS[block], (4096, 4096), 0.9)
        context.add(f"sparse.bytes.{block}", len(packed) / 4096**2, note=f"{len(packed)} bytes")


def shape_rows(context: Context, shape: Shape, sparsity: float) -> None:
    """One shape at one sparsity."""
    _, k, n = shape
    calls = {block: linear_call(pack_random(FORMS[block], (n, k), sparsity)[0], shape) for block in BLOCKS}
    times = interleave({**calls, **dense_int8_calls(shape)}, context.budget, in_a_row=True)
    key = f"sparse.fine.{shape_name(shape)}.{sparsity}"
    fastest = min(("dense", "_int_mm"), key=lambda name: times[name].median)
    context.add_ratio(f"{key}.4x4", times, "16x4", "4x4", f"{times['4x4'].microseconds:.0f} µs")
    context.add_ratio(f"{key}.1x4", times, fastest, "1x4", f"{times['1x4'].microseconds:.0f} µs; {fastest}")
