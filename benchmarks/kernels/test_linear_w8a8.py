"""Microbenchmarks of ``linear_w8a8``: ``pytest benchmarks/kernels --benchmark-enable``."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.kernels.linear_w8a8 import dynamic_layer, prepacked_call
from benchmarks.targets import LINEAR_SHAPES, shape_name


@pytest.mark.parametrize("shape", LINEAR_SHAPES, ids=shape_name)
@pytest.mark.parametrize("out_dtype", ["f32", "u8", "i32"])
def test_kernel(benchmark: BenchmarkFixture, shape: tuple[int, int, int], out_dtype: str) -> None:
    """The prepacked kernel, u8 in."""
    m, k, n = shape
    benchmark.extra_info["operations"] = 2 * m * k * n
    benchmark(prepacked_call(shape, out_dtype))


@pytest.mark.parametrize("tokens", [1, 8, 128])
def test_layer(benchmark: BenchmarkFixture, tokens: int) -> None:
    """The whole dynamic layer at 768×3072."""
    _, quantized = dynamic_layer(768, 3072)
    x = torch.randn(tokens, 768)
    with torch.inference_mode():
        out = benchmark(lambda: quantized(x))
    assert out.shape == (tokens, 3072)
