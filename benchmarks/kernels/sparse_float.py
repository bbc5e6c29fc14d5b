"""``linear_bsr``: blocks of float weights and single weights against torch's dense matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.kernels.blocks import FORMS, Shape, linear_call, pack_random
from benchmarks.sparse_targets import FINE_SHAPES, FLOAT_SPARSITIES, SPARSE_SHAPES
from benchmarks.target import shape_name

__all__ = ["dense_calls", "run"]


def run(context: Context) -> None:
    """Measure every row of the ``sparse_float`` suite."""
    for shape in SPARSE_SHAPES:
        for sparsity in FLOAT_SPARSITIES:
            with context.part(f"float blocks {shape_name(shape)}, {sparsity:.0%}"):
                shape_rows(context, shape, sparsity)


def dense_calls(shape: Shape) -> dict[str, Callable[[], object]]:
    """Return torch's dense products of a shape in float32 and bfloat16, with bias as ours."""
    m, k, n = shape
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    half = (x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    return {"fp32": lambda: F.linear(x, weight, bias), "bf16": lambda: F.linear(*half)}


def shape_rows(context: Context, shape: Shape, sparsity: float) -> None:
    """One shape at one sparsity."""
    _, k, n = shape
    blocks = ["16x1", "16x2", *(["4x1", "1x1"] if shape in FINE_SHAPES else [])]
    calls = dense_calls(shape)
    operations = {}
    for block in blocks:
        packed, multiply_adds = pack_random(FORMS[block], (n, k), sparsity)
        operations[block] = 2.0 * shape[0] * multiply_adds
        calls[block] = linear_call(packed, shape, is_float=True)
    times = interleave(calls, context.budget, in_a_row=True)
    for block in blocks:
        seen = times[block]
        baseline = "bf16" if block == "16x2" else "fp32"
        note = f"{operations[block] / seen.median / 1e9:.0f} GFLOPS on non-zeros, {seen.microseconds:.0f} µs"
        context.add_ratio(f"sparse.float.{shape_name(shape)}.{sparsity}.{block}", times, baseline, block, note)
