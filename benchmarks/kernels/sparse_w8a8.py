"""Block-sparse ``linear_w8a8``, 16x4: the kernel against the ceiling on its non-zeros and against dense int8."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness.rotation import copies_needed, rotate
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import Budget, interleave
from benchmarks.kernels.blocks import FORMS, Shape, dense_int8, dense_int8_calls, linear_call, pack_random
from benchmarks.sparse_targets import SPARSE_SHAPES, SPARSITIES
from benchmarks.target import shape_name
from fastcompress.ops import native

__all__ = ["run"]

_C = native.require("the block-sparse benchmarks")

GEMV_SHAPE: Shape = (1, 4096, 4096)


def run(context: Context) -> None:
    """Measure every row of the ``sparse`` suite."""
    for shape in SPARSE_SHAPES:
        for sparsity in SPARSITIES:
            with context.part(f"block-sparse kernel {shape_name(shape)}, {sparsity:.0%}"):
                kernel_rows(context, shape, sparsity)
    with context.part("block-sparse kernel, one token"):
        gemv_row(context)


def kernel_rows(context: Context, shape: Shape, sparsity: float) -> None:
    """One shape at one sparsity: share of the ceiling on the non-zeros, and against dense int8."""
    m, k, n = shape
    sparse, multiply_adds = pack_random(FORMS["16x4"], (n, k), sparsity)
    ceiling = context.ceilings.sampler(f"int8:{_C.isa()}")
    calls: dict[str, Callable[[], object]] = {
        "sparse": linear_call(sparse, shape),
        "sparse u8": linear_call(sparse, shape, out_dtype="u8"),
        **dense_int8_calls(shape),
        "ceiling": ceiling,
    }
    times = interleave(calls, context.budget, in_a_row=True)
    operations, key = 2.0 * m * multiply_adds, f"sparse.kernel.{shape_name(shape)}.{sparsity}"
    for name, row in (("sparse", "ceiling"), ("sparse u8", "ceiling_u8")):
        rate = operations / times[name].median
        context.check_ceiling(f"{key} {name}", operations, times[name].median, context.ceilings.own_int8(_C.isa()))
        note = f"{rate / 1e9:.0f} of {ceiling.median() / 1e9:.0f} GOPS, {times[name].microseconds:.0f} µs"
        context.add(f"{key}.{row}", rate / ceiling.median(), times, note)
    cold = interleave(
        {name: calls[name] for name in ("sparse", "dense", "_int_mm")}, Budget(context.budget.seconds / 3)
    )
    context.add_ratio(f"{key}.cold", cold, "_int_mm", "sparse", f"{cold['sparse'].microseconds:.0f} µs")
    fastest = min(("dense", "_int_mm"), key=lambda name: times[name].median)
    context.add_ratio(f"{key}.dense", times, fastest, "sparse", fastest)
    context.add_ratio(f"{key}.int_mm", times, "_int_mm", "sparse")


def gemv_row(context: Context) -> None:
    """One token: copies of the weights rotate past the last-level cache, sparse and dense alike."""
    _, k, n = GEMV_SHAPE
    calls = {}
    for name, packed in (("sparse", pack_random(FORMS["16x4"], (n, k), 0.9)[0]), ("dense", dense_int8((n, k)))):
        copies = 3 if context.quick else copies_needed(len(packed))
        ring = [linear_call(torch.from_numpy(packed).clone().numpy(), GEMV_SHAPE) for _ in range(copies)]
        calls[name] = rotate(ring, lambda each: each())
    times = interleave(calls, context.budget)
    context.add_ratio("sparse.gemv.dense", times, "dense", "sparse", f"{times['sparse'].microseconds:.1f} µs")
