"""Pruned float layers, and every kind of block-sparse layer made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.nn import PackedLayer, SparseConv2d, SparseLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.ops.block_csr import matrix_of, weight_of

__all__ = ["CASES", "Case", "prune_blocks", "pruned_conv2d", "pruned_linear"]


def prune_blocks(layer: nn.Module, block: tuple[int, int], density: float, seed: int = 0) -> Any:
    """Zero all but about `density` of the blocks of a layer's weight, at least one of them kept; returns the layer."""
    weight: Any = layer.weight
    matrix = matrix_of(weight.detach())
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(matrix.shape[0] // block[0], matrix.shape[1] // block[1], generator=generator) < density
    keep[0, 0] = True
    mask = keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    with torch.no_grad():
        weight.mul_(weight_of(mask, weight.shape))
    return layer.eval()


def pruned_linear(
    out_features: int,
    in_features: int,
    density: float = 0.3,
    block: tuple[int, int] = (16, 4),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Linear:
    torch.manual_seed(seed)
    return prune_blocks(nn.Linear(in_features, out_features, dtype=dtype), block, density, seed)


def pruned_conv2d(
    block: tuple[int, int] = (16, 4), density: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Conv2d:
    torch.manual_seed(seed)
    return prune_blocks(nn.Conv2d(8, 32, 3, stride=(1, 2), padding=(1, 2), dtype=dtype), block, density, seed)


@dataclass(frozen=True)
class Case:
    """One kind of layer with one kind of blocks; ``make(seed)`` gives the layer, ``x`` is an input for it."""

    name: str
    make: Callable[[int], PackedLayer]
    x: Tensor
    family: str
    dtype: torch.dtype
    block: tuple[int, int]


def _cases() -> list[Case]:
    found: list[Case] = []
    generator = torch.Generator().manual_seed(7)
    x, image = torch.randn(5, 16, generator=generator), torch.randn(2, 8, 6, 7, generator=generator)

    def add(make: Any, family: str, dtype: torch.dtype, block: tuple[int, int]) -> None:
        name = f"{family}-{str(dtype).removeprefix('torch.')}-{block[0]}x{block[1]}"
        found.append(Case(name, make, x if family.startswith("linear") else image, family, dtype, block))

    static = {"input_scale": 0.03, "input_zero_point": 110, "activation": "relu"}
    for block in ((16, 4), (4, 4), (1, 4)):
        add(
            lambda seed, b=block: SparseQuantLinear.from_float(
                pruned_linear(32, 16, block=b, seed=seed), input_mode="dynamic", block_size=b
            ),
            "linear_w8a8",
            torch.int8,
            block,
        )
        add(
            lambda seed, b=block: SparseQuantConv2d.from_float(pruned_conv2d(b, seed=seed), block_size=b, **static),
            "conv2d_w8a8",
            torch.int8,
            block,
        )
    for dtype, block in (
        (torch.float32, (16, 1)),
        (torch.float32, (4, 1)),
        (torch.float32, (1, 1)),
        (torch.bfloat16, (16, 2)),
    ):
        add(
            lambda seed, b=block, d=dtype: SparseLinear.from_float(
                pruned_linear(32, 16, block=b, seed=seed, dtype=d), activation="gelu"
            ),
            "linear_bsr",
            dtype,
            block,
        )
        add(
            lambda seed, b=block, d=dtype: SparseConv2d.from_float(pruned_conv2d(b, seed=seed, dtype=d)),
            "conv2d_bsr",
            dtype,
            block,
        )
    return found


CASES = _cases()
