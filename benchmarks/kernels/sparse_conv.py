"""Block-sparse convolutions of ResNet-50 against dense ones of the same precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.harness.suite import Context
from benchmarks.harness.timing import Budget, Timing, interleave
from benchmarks.kernels.blocks import FORMS, Packed, dense_int8, pack_random
from benchmarks.kernels.shapes import ConvShape, resnet50
from fastcompress.ops import native

__all__ = ["run"]

_C = native.require("the sparse convolution benchmarks")

SPARSITY = 0.9
INT8, FLOAT = ("16x4", "4x4", "1x4"), ("16x1", "1x1")
BUDGET = Budget(0.15)  # for each of so many candidates


def run(context: Context) -> None:
    """Measure every row of the ``sparse_conv`` suite; the single shapes go into the report's details."""
    # The first layer has three channels: no block of four fits it, and it stays dense.
    shapes = [shape for shape in resnet50() if shape.in_channels % 4 == 0]
    measured: dict[ConvShape, Mapping[str, Timing]] = {}
    for shape in shapes[:2] if context.quick else shapes:
        with context.part(f"sparse convolution {shape}"):
            measured[shape] = interleave(candidates(shape), context.budget if context.quick else BUDGET, in_a_row=True)
    context.report.details["sparse_conv"] = [
        {"shape": str(shape), **{name: round(seen.microseconds, 2) for name, seen in times.items()}}
        for shape, times in measured.items()
    ]
    for block in INT8:
        for form in ("u8", "f32"):
            add_geometric(context, f"sparse_conv.{block}.{form}", measured, f"dense {form}", f"{block} {form}")
    for block in FLOAT:
        add_geometric(context, f"sparse_conv.{block}.fp32", measured, "fp32", block)


def candidates(shape: ConvShape) -> dict[str, Callable[[], object]]:
    """Return every call for one convolution, images channels-last."""
    weight_shape = (shape.out_channels, shape.in_channels, shape.kernel, shape.kernel)
    x = torch.randn(1, shape.in_channels, shape.side, shape.side).to(memory_format=torch.channels_last)
    weight = torch.randn(weight_shape).to(memory_format=torch.channels_last)
    bias = torch.randn(shape.out_channels)
    calls: dict[str, Callable[[], object]] = {"fp32": lambda: F.conv2d(x, weight, bias, shape.stride, shape.padding)}
    packed = {"dense": dense_int8(weight_shape)}
    packed |= {block: pack_random(FORMS[block], weight_shape, SPARSITY)[0] for block in INT8}
    for name, blob in packed.items():
        for form in ("u8", "f32"):
            calls[f"{name} {form}"] = raw_call(_C.conv2d_w8a8, blob, shape, form)
    for block in FLOAT:
        blob = pack_random(FORMS[block], weight_shape, SPARSITY)[0]
        calls[block] = raw_call(_C.conv2d_bsr, blob, shape, "f32")
    return calls


def raw_call(function: Callable[..., object], packed: Packed, shape: ConvShape, form: str) -> Callable[[], object]:
    """Return a call on raw NHWC buffers, both of the dtype `form`."""
    rng = np.random.default_rng(0)
    side = (shape.side + 2 * shape.padding - shape.kernel) // shape.stride + 1
    image = (1, shape.side, shape.side, shape.in_channels)
    x = rng.integers(0, 256, image, dtype=np.uint8) if form == "u8" else rng.standard_normal(image, dtype=np.float32)
    out = np.zeros((1, side, side, shape.out_channels), np.uint8 if form == "u8" else np.float32)
    geometry = ((shape.stride,) * 2, (shape.padding,) * 4, (1, 1))
    kinds = {"dtype": form, "out_dtype": form, **({"out_scale": 0.05} if form == "u8" else {})}
    return lambda: function(x, packed, out, *geometry, **kinds)


def add_geometric(
    context: Context, key: str, measured: Mapping[ConvShape, Mapping[str, Timing]], dense: str, sparse: str
) -> None:
    """Record the geometric mean of the speed-ups."""
    ratios = [times[dense].median / times[sparse].median for times in measured.values()]
    note = f"{len(ratios)} shapes, {min(ratios):.2f}–{max(ratios):.2f}, {sum(r < 1 for r in ratios)} below 1"
    context.add(key, math.exp(sum(map(math.log, ratios)) / len(ratios)), note=note)
