"""Microbenchmarks of ``QuantConv2d``: ``pytest benchmarks/kernels --benchmark-enable``."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness.layout import channels_last
from benchmarks.kernels.conv2d_w8a8 import SCALE, ZERO_POINT, float_conv
from benchmarks.kernels.shapes import ConvShape, mobilenet_v2, resnet50
from fastcompress.nn import QuantConv2d

SHAPES = (resnet50()[0], resnet50()[1], resnet50()[2], mobilenet_v2()[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer(benchmark: BenchmarkFixture, shape: ConvShape) -> None:
    """One static layer, channels-last f32 in and out."""
    conv = channels_last(float_conv(shape))
    layer = QuantConv2d.from_float(conv, input_mode="static", input_scale=SCALE, input_zero_point=ZERO_POINT)
    x = torch.randn(1, shape.in_channels, shape.side, shape.side).to(memory_format=torch.channels_last)
    benchmark.extra_info["operations"] = shape.operations
    with torch.inference_mode():
        out = benchmark(lambda: layer(x))
    assert out.shape[:2] == (1, shape.out_channels)
