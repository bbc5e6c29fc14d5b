"""`quantize` on pruned layers: which block shapes are tried, how often, and what is decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, QuantLinear, SparseQuantConv2d, SparseQuantLinear
from tests.nn.sparse_cases import prune_blocks, pruned_conv2d


class Clock:
    """A timer with a time for each block; it remembers the forms that it was asked about."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.tried = seconds, []

    def __call__(self, functions: Mapping[str, Any]) -> dict[str, float]:
        result = {"dense": 10.0, "int8": 1.0}
        if "sparse int8" in functions:
            layer = functions["sparse int8"].func
            name = f"b{layer.block_size[0]}x{layer.block_size[1]}"
            self.tried.append(name)
            result["sparse int8"] = self.seconds[name]
        return {name: result[name] for name in functions}


def linear(block: tuple[int, int], density: float = 0.2, size: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(prune_blocks(nn.Linear(size, size), block, density)).eval()


def reason(model: nn.Module) -> str:
    return model._fastcompress_record["0"].reason  # type: ignore[union-attr,index]


@pytest.mark.parametrize("block", [(16, 4), (4, 4), (1, 4)])
def test_blocks_of_every_shape_are_found(block: tuple[int, int]) -> None:
    clock = Clock(b16x4=0.5, b4x4=0.5, b1x4=0.5)
    q = fc.quantize(linear(block, 0.1), "W8A8-dynamic", example_inputs=torch.randn(8, 64), timer=clock)
    assert isinstance(q[0], SparseQuantLinear)
    assert q[0].block_size == block
    assert f"of its {block[0]}x{block[1]} blocks are not zero: block-sparse" in reason(q)
    assert clock.tried == [f"b{block[0]}x{block[1]}"] if block == (16, 4) else len(clock.tried) <= 2


def test_the_faster_of_two_shapes_wins_and_losers_leave_dense_int8() -> None:
    model, x = linear((1, 4), 0.05), torch.randn(8, 64)
    clock = Clock(b1x4=0.8, b4x4=0.6, b16x4=9.0)
    q = fc.quantize(model, "W8A8-dynamic", example_inputs=x, timer=clock)
    assert sorted(clock.tried) == ["b1x4", "b4x4"]
    assert q[0].block_size == (4, 4)
    lost = fc.quantize(model, "W8A8-dynamic", example_inputs=x, timer=Clock(b1x4=1.0, b4x4=1.1, b16x4=9.0))
    assert type(lost[0]) is QuantLinear
    assert "6% of its 1x4 blocks are not zero: dense int8, which is faster" in reason(lost)


def test_convolutions_take_part() -> None:
    model = nn.Sequential(pruned_conv2d((4, 4), 0.2), nn.ReLU()).eval()
    data = [torch.randn(2, 8, 6, 7)]
    clock = Clock(b4x4=0.5, b16x4=0.7, b1x4=0.9)
    q = fc.quantize(model, "W8A8", data, timer=clock)
    assert type(q[0]) is SparseQuantConv2d
    assert (q[0].block_size, q[0].activation) == ((4, 4), "relu")
    assert q[0].kernel_name().startswith("conv2d_w8a8")
    with torch.no_grad():
        expected = model(data[0])
        assert torch.linalg.norm(q(data[0]) - expected) < 0.05 * torch.linalg.norm(expected)
    dense = fc.quantize(model, "W8A8", data, timer=Clock(b4x4=1.5, b16x4=1.7, b1x4=1.9))
    assert type(dense[0]) is QuantConv2d


def test_groups_and_full_weights_are_not_tried() -> None:
    grouped = nn.Conv2d(16, 16, 3, groups=4)
    nn.init.zeros_(grouped.weight)
    grouped.weight.data[0] = 1.0
    model = nn.Sequential(grouped, nn.Conv2d(16, 16, 1)).eval()
    clock = Clock()
    q = fc.quantize(model, "W8A8", [torch.randn(1, 16, 5, 5)], timer=clock)
    assert [type(layer) for layer in q] == [QuantConv2d, QuantConv2d]
    assert clock.tried == []
    assert "blocks" not in reason(q)


def test_equal_layers_are_tried_once_and_other_densities_again() -> None:
    layers = [prune_blocks(nn.Linear(64, 64), (16, 4), density, seed=1) for density in (0.2, 0.2, 0.5)]
    clock = Clock(b16x4=0.5)
    q = fc.quantize(nn.Sequential(*layers).eval(), "W8A8-dynamic", example_inputs=torch.randn(8, 64), timer=clock)
    assert clock.tried == ["b16x4", "b16x4"]
    assert all(isinstance(layer, SparseQuantLinear) for layer in q)


def test_unmeasured_linears_take_coarse_blocks_only_and_convolutions_any() -> None:
    def quantized(model: nn.Module, x: torch.Tensor) -> nn.Module:
        return fc.quantize(model, "W8A8", [x], only_if_faster=False)[0]

    x, image = torch.randn(8, 64), torch.randn(2, 8, 6, 7)
    assert quantized(linear((16, 4)), x).block_size == (16, 4)
    assert type(quantized(linear((4, 4)), x)) is QuantLinear
    assert type(quantized(linear((16, 4), 0.75, 256), torch.randn(8, 256))) is QuantLinear
    assert quantized(nn.Sequential(pruned_conv2d((4, 4), 0.2)), image).block_size == (4, 4)
    assert type(quantized(nn.Sequential(pruned_conv2d((4, 4), 0.8)), image)) is QuantConv2d
