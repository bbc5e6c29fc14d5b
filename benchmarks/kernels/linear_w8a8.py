"""``linear_w8a8``: the prepacked kernel against the machine's ceilings, the whole layer against torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from benchmarks.harness.rotation import copies_needed, rotate
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.targets import LINEAR_SHAPES, shape_name
from fastcompress.nn import QuantLinear
from fastcompress.ops import native

__all__ = ["forced_isa", "prepacked_call", "run"]

_C = native.require("the linear benchmarks")

GEMV_SHAPE = (1, 4096, 4096)


def run(context: Context) -> None:
    """Measure every row of the ``linear`` suite."""
    for shape in LINEAR_SHAPES:
        with context.part(f"linear_w8a8 kernel {shape_name(shape)}"):
            kernel_rows(context, shape)
            vector_row(context, shape)
    for shape in LINEAR_SHAPES:
        with context.part(f"QuantLinear {shape_name(shape)}"):
            layer_rows(context, shape)
    with context.part(f"QuantLinear {shape_name(GEMV_SHAPE)}, operands rotated"):
        gemv_rows(context)
    with context.part("QuantLinear, forced avx2"):
        avx2_rows(context)
    with context.part("QuantLinear, overhead of a call"):
        overhead_row(context)


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run a block with the kernels of one ISA (packing and calls alike), then go back to the one before."""
    before = _C.isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


def prepacked_call(shape: tuple[int, int, int], out_dtype: str = "f32") -> Callable[[], object]:
    """Return a call of the kernel alone on raw buffers: u8 ``[M, K]`` in, packed weights, ``[M, N]`` out."""
    m, k, n = shape
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (n, k), dtype=np.int8)
    scale = generator.uniform(1e-3, 2e-3, n).astype(np.float32)
    bias = generator.standard_normal(n).astype(np.float32)
    packed = _C.pack_w8a8(weight, scale, bias, 0, 0.02, 128, 0)
    # torch's allocator aligns to cache lines, numpy's to 16 bytes: a row that straddles lines costs tile loads double.
    x = torch.from_numpy(generator.integers(0, 256, (m, k), dtype=np.uint8)).clone().numpy()
    out = torch.zeros(m, n, dtype={"f32": torch.float32, "i32": torch.int32, "u8": torch.uint8}[out_dtype]).numpy()
    return lambda: _C.linear_w8a8(x, packed, out, dtype="u8", out_dtype=out_dtype)


def dynamic_layer(k: int, n: int) -> tuple[nn.Linear, QuantLinear]:
    """Return a float linear and its dynamically quantized counterpart."""
    dense = nn.Linear(k, n).eval()
    return dense, QuantLinear.from_float(dense, input_mode="dynamic")


def kernel_rows(context: Context, shape: tuple[int, int, int]) -> None:
    """The kernel alone: fraction of two ceilings, and against ``torch._int_mm`` (s8 × s8 → s32, no epilogue)."""
    m, k, n = shape
    operations = 2.0 * m * k * n
    a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    b_transposed, b_contiguous = b.t(), b.t().contiguous()
    own = context.ceilings.sampler(f"int8:{_C.isa()}")
    best = context.ceilings.sampler(context.ceilings.best_int8_kind())
    times = interleave(
        {
            "fastcompress": prepacked_call(shape),
            "_int_mm": lambda: torch._int_mm(a, b_transposed),
            "_int_mm contiguous": lambda: torch._int_mm(a, b_contiguous),
            "own ceiling": own,
            "best ceiling": best,
        },
        context.budget,
        in_a_row=True,
    )
    seconds, name = times["fastcompress"].median, shape_name(shape)
    context.check_ceiling(f"linear_w8a8 {name}", operations, seconds, context.ceilings.own_int8(_C.isa()))
    rate = operations / seconds
    note = f"{rate / 1e9:.0f} of {own.median() / 1e9:.0f} GOPS"
    context.add(f"linear.kernel.{name}.own_ceiling", rate / own.median(), times, note)
    context.add(f"linear.kernel.{name}.best_ceiling", rate / best.median(), times, note)
    strongest = min(("_int_mm", "_int_mm contiguous"), key=lambda candidate: times[candidate].median)
    context.add_ratio(f"linear.kernel.{name}.int_mm", times, strongest, "fastcompress")


def vector_row(context: Context, shape: tuple[int, int, int]) -> None:
    """The kernel alone on the strongest ISA without tiles, against that ISA's own ceiling."""
    m, k, n = shape
    isa = [name for name in _C.isa_supported() if name != "amxint8"][-1]
    ceiling = context.ceilings.sampler(f"int8:{isa}")
    with forced_isa(isa):
        times = interleave(
            {f"fastcompress {isa}": prepacked_call(shape), "ceiling": ceiling}, context.budget, in_a_row=True
        )
    seconds, operations = times[f"fastcompress {isa}"].median, 2.0 * m * k * n
    context.check_ceiling(f"linear_w8a8 {isa} {shape_name(shape)}", operations, seconds, context.ceilings.own_int8(isa))
    rate = operations / seconds
    note = f"{isa}, {rate / 1e9:.0f} of {ceiling.median() / 1e9:.0f} GOPS"
    context.add(f"linear.vector.{shape_name(shape)}.ceiling", rate / ceiling.median(), times, note)


def layer_rows(context: Context, shape: tuple[int, int, int]) -> None:
    """The whole dynamic layer, float in and out, against torch's float linears."""
    m, k, n = shape
    dense, quantized = dynamic_layer(k, n)
    half = nn.Linear(k, n).eval().bfloat16()
    x = torch.randn(m, k)
    x_half = x.bfloat16()
    times = interleave(
        {"fastcompress": lambda: quantized(x), "fp32": lambda: dense(x), "bf16": lambda: half(x_half)}, context.budget
    )
    for baseline in ("fp32", "bf16"):
        context.add_ratio(f"linear.layer.{shape_name(shape)}.{baseline}", times, baseline, "fastcompress")


def gemv_rows(context: Context) -> None:
    """One token: weights stream from memory, so copies of them rotate past the last-level cache."""
    _, k, n = GEMV_SHAPE
    weight_bytes = k * n
    copies = 3 if context.quick else copies_needed(weight_bytes)
    x = torch.randn(1, k)
    dense, first = dynamic_layer(k, n)
    ring = [first] + [copy.deepcopy(first) for _ in range(copies - 1)]
    floats = [dense.weight.detach().clone() for _ in range(max(2, copies // 4))]
    halves = [dense.weight.detach().bfloat16() for _ in range(max(2, copies // 2))]
    x_half = x.bfloat16()
    times = interleave(
        {
            "fastcompress": rotate(ring, lambda layer: layer(x)),
            "fp32": rotate(floats, lambda weight: nn.functional.linear(x, weight)),
            "bf16": rotate(halves, lambda weight: nn.functional.linear(x_half, weight)),
            "reading alone": rotate([layer.packed.numpy() for layer in ring], _C.read_buffer),
        },
        context.budget,
    )
    key = "linear.gemv.1×4096×4096"
    fraction = times["reading alone"].median / times["fastcompress"].median
    speeds = [weight_bytes / times[name].median / 1e9 for name in ("fastcompress", "reading alone")]
    note = f"{speeds[0]:.1f} of {speeds[1]:.1f} GB/s, {copies} copies of 16 MiB"
    context.add(f"{key}.bandwidth", fraction, times, note)
    for baseline in ("fp32", "bf16"):
        context.add_ratio(f"{key}.{baseline}", times, baseline, "fastcompress")


def avx2_rows(context: Context) -> None:
    """The whole dynamic layer on the AVX2 kernels, against torch fp32 on whatever torch uses."""
    keys = {shape: f"linear.avx2.{shape_name(shape)}.fp32" for shape in LINEAR_SHAPES}
    if "avx2" not in _C.isa_supported():
        context.skip(list(keys.values()), "this processor has no AVX2")
        return
    with forced_isa("avx2"):
        for shape, key in keys.items():
            m, k, n = shape
            dense, quantized = dynamic_layer(k, n)
            x = torch.randn(m, k)
            calls = {
                "fastcompress avx2": lambda layer=quantized, x=x: layer(x),
                "fp32": lambda layer=dense, x=x: layer(x),
            }
            times = interleave(calls, context.budget)
            seconds, ceiling = times["fastcompress avx2"].median, context.ceilings.own_int8("avx2")
            fraction = context.check_ceiling(f"QuantLinear avx2 {shape_name(shape)}", 2.0 * m * k * n, seconds, ceiling)
            context.add_ratio(key, times, "fp32", "fastcompress avx2", f"{fraction:.2f} of avx2's int8 ceiling")


def overhead_row(context: Context) -> None:
    """A call so small that only Python, dispatch and checks are left."""
    dense, quantized = dynamic_layer(64, 64)
    x = torch.randn(1, 64)
    times = interleave({"fastcompress": lambda: quantized(x), "fp32": lambda: dense(x)}, context.budget)
    note = f"torch fp32: {times['fp32'].microseconds:.1f} µs"
    context.add("linear.overhead.1×64×64", times["fastcompress"].microseconds, times, note)
