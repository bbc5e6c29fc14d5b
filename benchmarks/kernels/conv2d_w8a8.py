"""``QuantConv2d`` on the distinct convolutions of ResNet-50 and MobileNetV2, against torch fp32, bf16 and int8."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from benchmarks.harness.layout import channels_last
from benchmarks.harness.rotation import last_level_cache_bytes
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import Budget, Timing, interleave
from benchmarks.kernels import torch_int8
from benchmarks.kernels.shapes import ConvShape, mobilenet_v2, resnet50
from fastcompress.nn import QuantConv2d
from fastcompress.ops import native

__all__ = ["measure_shape", "run"]

Measured = Mapping[ConvShape, dict[str, Timing]]

_C = native.require("the convolution benchmarks")

SCALE, ZERO_POINT = 8.0 / 255, 128
OURS, OURS_U8 = "fastcompress", "fastcompress u8"


def run(context: Context) -> None:
    """Measure every row of the ``conv2d`` suite; the single shapes go into the report's details."""
    networks = {"resnet50": resnet50(), "mobilenet_v2": mobilenet_v2()}
    times: dict[ConvShape, dict[str, Timing]] = {}
    for name, shapes in networks.items():
        for shape in shapes[:2] if context.quick else shapes:
            if shape not in times:
                with context.part(f"QuantConv2d {name} {shape}"):
                    times[shape] = measure_shape(shape, context.budget)
                    check(context, shape, times[shape])
    context.report.details["conv2d"] = [detail(shape, measured) for shape, measured in times.items()]
    for key, shapes in {**networks, "both": tuple(times)}.items():
        geometric_rows(context, key, {shape: times[shape] for shape in shapes if shape in times})
    depthwise = {shape: seen for shape, seen in times.items() if shape.is_depthwise and shape.kernel == 3}
    for baseline in ("fp32", "onednn"):
        add_geometric(context, f"conv2d.depthwise3x3.{baseline}", depthwise, OURS, baseline)


def float_conv(shape: ConvShape) -> nn.Conv2d:
    """Return a convolution of this shape with random weights."""
    ends = (shape.in_channels, shape.out_channels)
    return nn.Conv2d(*ends, shape.kernel, shape.stride, shape.padding, groups=shape.groups).eval()


def measure_shape(shape: ConvShape, budget: Budget) -> dict[str, Timing]:
    """Time one convolution in every candidate; inputs are channels-last, as all of them like best."""
    conv, half = channels_last(float_conv(shape)), channels_last(float_conv(shape).bfloat16())
    x = torch.randn(1, shape.in_channels, shape.side, shape.side).to(memory_format=torch.channels_last)
    x_half = x.bfloat16()
    quantized = QuantConv2d.from_float(conv, input_mode="static", input_scale=SCALE, input_zero_point=ZERO_POINT)
    packed, u8 = quantized.packed, torch.clamp(torch.round(x / SCALE) + ZERO_POINT, 0, 255).to(torch.uint8)
    geometry = [
        shape.out_channels,
        [shape.kernel, shape.kernel],
        [shape.stride, shape.stride],
        [shape.padding] * 4,
        [1, 1],
    ]
    to_u8 = {"out_dtype": torch.uint8, "out_scale": SCALE, "out_zero_point": ZERO_POINT}
    op = torch.ops.fastcompress.conv2d_w8a8
    return interleave(
        {
            OURS: lambda: quantized(x),
            "fp32": lambda: conv(x),
            "bf16": lambda: half(x_half),
            **torch_int8.float_calls(conv, x, SCALE, ZERO_POINT),
            OURS_U8: lambda: op(u8, packed, *geometry, **to_u8),
            **torch_int8.u8_calls(conv, x, SCALE, ZERO_POINT),
        },
        budget,
    )


def check(context: Context, shape: ConvShape, times: dict[str, Timing]) -> None:
    """Compare both of our times with the int8 ceiling."""
    ceiling = context.ceilings.own_int8(_C.isa())
    for name in (OURS, OURS_U8):
        context.check_ceiling(f"{name} conv2d {shape}", shape.operations, times[name].median, ceiling)


def baseline_time(times: dict[str, Timing], baseline: str) -> float:
    """Return the baseline's median seconds; for oneDNN, the faster of the two ways to call it."""
    if baseline == "onednn":
        return min(times["onednn pointwise"].median, times["onednn quantized"].median)
    if baseline == "onednn_kernel":
        return min(times["onednn pointwise u8"].median, times["onednn quantized u8"].median)
    return times[baseline].median


def add_geometric(context: Context, key: str, measured: Measured, ours: str, baseline: str) -> None:
    """Record the geometric mean of the speed-ups over ``measured``."""
    if not measured:
        context.skip(key, "no shape of this group was measured")
        return
    ratios = [baseline_time(times, baseline) / times[ours].median for times in measured.values()]
    note = f"{len(ratios)} shapes, {min(ratios):.2f}–{max(ratios):.2f}, {sum(r < 1 for r in ratios)} below 1"
    if baseline == "fp32":
        limits = [times["fp32"].median / floor_seconds(context, shape) for shape, times in measured.items()]
        note += f"; {geometric_mean(limits):.1f}× with products and images at this machine's ceilings"
    context.add(key, geometric_mean(ratios), note=note)


def floor_seconds(context: Context, shape: ConvShape) -> float:
    """Return the time that no int8 convolution with float32 images can beat here.

    Products at the int8 ceiling, then images at the last-level cache's read bandwidth (quantization needs all of the
    input before the first product, and little of the output is left to overlap), and no call overhead at all.
    """
    cache = min(16 << 20, last_level_cache_bytes())
    products = shape.operations / context.ceilings.own_int8(_C.isa())
    return products + shape.float_bytes / context.ceilings.bandwidth[cache]


def geometric_rows(context: Context, key: str, measured: Measured) -> None:
    """Record the four rows of one group of shapes."""
    for baseline in ("fp32", "onednn", "bf16"):
        add_geometric(context, f"conv2d.{key}.{baseline}", measured, OURS, baseline)
    add_geometric(context, f"conv2d.{key}.onednn_kernel", measured, OURS_U8, "onednn_kernel")


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def detail(shape: ConvShape, times: dict[str, Timing]) -> dict[str, object]:
    """Return one shape's line of the details: times in µs and rate in GOPS."""
    microseconds = {name: round(timing.microseconds, 2) for name, timing in times.items()}
    rate = shape.operations / times[OURS].median / 1e9
    return {"shape": str(shape), "gops": round(rate, 1), "times_us": microseconds}
