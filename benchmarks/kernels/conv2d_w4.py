"""Convolutions with four-bit weights, unpacked to bytes in every call, against the same layers in eight bits."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.harness.layout import channels_last
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.kernels.shapes import ConvShape, resnet50
from fastcompress.nn import QuantConv2d

__all__ = ["run"]


def run(context: Context) -> None:
    """Measure the ``conv2d_w4`` suite: distinct convolutions of ResNet-50, one image."""
    shapes = resnet50()[:2] if context.quick else resnet50()
    with context.part("four-bit convolutions of ResNet-50"):
        ratios, four, eight = [], 0, 0
        for shape in shapes:
            ratio, nbytes = _measured(context, shape)
            ratios.append(ratio)
            four, eight = four + nbytes[0], eight + nbytes[1]
        mean = torch.tensor(ratios).log().mean().exp().item()
        note = f"{len(ratios)} shapes, {min(ratios):.2f}–{max(ratios):.2f}"
        context.add("conv2d_w4.time", mean, note=note)
        context.add("conv2d_w4.bytes", four / eight, note=f"{four / 1e6:.2f} of {eight / 1e6:.2f} MB")


def _measured(context: Context, shape: ConvShape) -> tuple[float, tuple[int, int]]:
    """Time in eight bits over time in four, and the bytes of both."""
    ends = (shape.in_channels, shape.out_channels)
    conv = channels_last(nn.Conv2d(*ends, shape.kernel, shape.stride, shape.padding, groups=shape.groups).eval())
    x = torch.randn(1, shape.in_channels, shape.side, shape.side).to(memory_format=torch.channels_last)
    make = partial(QuantConv2d.from_float, conv, input_mode="static", input_scale=8.0 / 255, input_zero_point=128)
    four, eight = make(weight_bits=4), make()
    times = interleave({"four": lambda: four(x), "eight": lambda: eight(x)}, context.budget)
    return times["eight"].median / times["four"].median, (four.packed.numel(), eight.packed.numel())
