"""Block-sparse ``linear_w8a8``: kernels against the ceiling on their non-zeros and against dense int8."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.rotation import copies_needed, rotate
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.targets import SPARSE_SHAPES, SPARSITIES, shape_name
from fastcompress.ops import native

__all__ = ["random_blocks", "run"]

_C = native.require("the block-sparse benchmarks")

Shape = tuple[int, int, int]
Packed = NDArray[np.uint8]

GEMV_SHAPE: Shape = (1, 4096, 4096)
SWEEP_SHAPE: Shape = (128, 3072, 768)
SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def run(context: Context) -> None:
    """Measure every row of the ``sparse`` suite."""
    for shape in SPARSE_SHAPES:
        for sparsity in SPARSITIES:
            with context.part(f"block-sparse kernel {shape_name(shape)}, {sparsity:.0%}"):
                kernel_rows(context, shape, sparsity)
    with context.part("block-sparse kernel, one token"):
        gemv_row(context)
    with context.part("block-sparse kernel, 0 to 99%"):
        sweep_rows(context)


def random_blocks(shape: Shape, sparsity: float) -> tuple[Packed, Packed, int]:
    """Return random weights packed as 16x4 blocks and as a dense layer, and the number of multiply-adds of one row."""
    _, k, n = shape
    rng = np.random.default_rng(0)
    keep = rng.random((n // 16, k // 4)) >= sparsity
    rows, columns = np.nonzero(keep)
    crow = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int32)
    values = rng.integers(-127, 128, (len(rows), 16, 4), dtype=np.int8)
    dense = np.zeros((n // 16, k // 4, 16, 4), np.int8)
    dense[rows, columns] = values
    weight = np.ascontiguousarray(dense.transpose(0, 2, 1, 3).reshape(n, k))
    rest = (rng.uniform(1e-3, 2e-3, n).astype(np.float32), rng.standard_normal(n).astype(np.float32), 0, 0.02, 128, 0)
    sparse = _C.pack_bsr(crow, columns.astype(np.int32), values, (n, k), *rest)
    return sparse, _C.pack_w8a8(weight, *rest), 64 * len(rows)


def call(packed: Packed, shape: Shape, out_dtype: str = "f32") -> Callable[[], object]:
    """Return a call of the kernel on raw buffers: u8 in."""
    m, k, n = shape
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (m, k), dtype=np.uint8)).clone().numpy()
    out = torch.zeros(m, n, dtype={"f32": torch.float32, "u8": torch.uint8}[out_dtype]).numpy()
    return lambda: _C.linear_w8a8(x, packed, out, dtype="u8", out_dtype=out_dtype, out_scale=0.05)


def kernel_rows(context: Context, shape: Shape, sparsity: float) -> None:
    """One shape at one sparsity: share of the ceiling on the non-zeros, and against dense int8."""
    m, k, n = shape
    sparse, dense, multiply_adds = random_blocks(shape, sparsity)
    a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8).t()
    ceiling = context.ceilings.sampler(f"int8:{_C.isa()}")
    calls: dict[str, Callable[[], object]] = {
        "sparse": call(sparse, shape),
        "sparse u8": call(sparse, shape, "u8"),
        "dense": call(dense, shape),
        "_int_mm": lambda: torch._int_mm(a, b),
        "ceiling": ceiling,
    }
    times = interleave(calls, context.budget)
    operations, key = 2.0 * m * multiply_adds, f"sparse.kernel.{shape_name(shape)}.{sparsity}"
    for name, row in (("sparse", "ceiling"), ("sparse u8", "ceiling_u8")):
        rate = operations / times[name].median
        context.check_ceiling(f"{key} {name}", operations, times[name].median, context.ceilings.own_int8(_C.isa()))
        note = f"{rate / 1e9:.0f} of {ceiling.median() / 1e9:.0f} GOPS, {times[name].microseconds:.0f} µs"
        context.add(f"{key}.{row}", rate / ceiling.median(), times, note)
    fastest = min(("dense", "_int_mm"), key=lambda name: times[name].median)
    context.add_ratio(f"{key}.dense", times, fastest, "sparse", fastest)
    context.add_ratio(f"{key}.int_mm", times, "_int_mm", "sparse")


def gemv_row(context: Context) -> None:
    """One token: copies of the weights rotate past the last-level cache, sparse and dense alike."""
    sparse, dense, _ = random_blocks(GEMV_SHAPE, 0.9)
    _, k, n = GEMV_SHAPE
    calls = {}
    for name, packed in (("sparse", sparse), ("dense", dense)):
        copies = 3 if context.quick else copies_needed(len(packed))
        ring = [call(torch.from_numpy(packed).clone().numpy(), GEMV_SHAPE) for _ in range(copies)]
        calls[name] = rotate(ring, lambda each: each())
    times = interleave(calls, context.budget)
    context.add_ratio("sparse.gemv.dense", times, "dense", "sparse", f"{times['sparse'].microseconds:.1f} µs")
    context.add("sparse.bytes", len(sparse) / (n * k), note=f"{len(sparse)} bytes")


def sweep_rows(context: Context) -> None:
    """Cost against sparsity: the details hold every point, and the first sparsity that pays is a row."""
    points: list[dict[str, object]] = []
    ratios: list[tuple[float, float]] = []
    for sparsity in SWEEP[::4] if context.quick else SWEEP:
        sparse, dense, multiply_adds = random_blocks(SWEEP_SHAPE, sparsity)
        times = interleave({"sparse": call(sparse, SWEEP_SHAPE), "dense": call(dense, SWEEP_SHAPE)}, context.budget)
        ratio = times["sparse"].median / times["dense"].median
        ratios.append((sparsity, ratio))
        density = multiply_adds / (SWEEP_SHAPE[1] * SWEEP_SHAPE[2])
        points.append({"sparsity": sparsity, "density": density, "time_over_dense": ratio})
    context.report.details["sparse_sweep"] = points
    context.add("sparse.break_even", break_even(ratios), note="between the points of the sweep, linearly")


def break_even(ratios: list[tuple[float, float]]) -> float | None:
    """Return the lowest sparsity from which on sparse is faster, or None if it never is."""
    if ratios[-1][1] >= 1:
        return None
    last = max((i for i, (_, ratio) in enumerate(ratios) if ratio >= 1), default=-1)
    if last < 0:
        return ratios[0][0]
    (s0, r0), (s1, r1) = ratios[last], ratios[last + 1]
    return s0 + (s1 - s0) * (r0 - 1) / (r0 - r1)
