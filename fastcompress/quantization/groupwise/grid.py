"""The grid that a group of neighbouring weights is rounded to: which integers, whose scale, what is taken off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles
from fastcompress.ops.canonical_w8 import W8Canonical
from fastcompress.ops.checks import check_weight
from fastcompress.ops.rounding import SCALE_DTYPES, from_groups, to_groups

__all__ = ["GroupGrid", "GroupParams", "Quantized", "checked_matrix", "restored", "rounded"]


@dataclass(frozen=True)
class GroupGrid:
    """How the weights of a group are stored.

    Attributes:
        bits: 4 or 8.
        group_size: neighbouring inputs that share a scale: a multiple of 8, or None for the whole row. Rows need not
            be a multiple of it; more than there are means all.
        symmetric: integers around zero; else 0 to 15 with a zero point (or a float minimum) for each group.
        scale_dtype: float32, bfloat16 or float16; scales are rounded to it before the weights are.

    Raises:
        TypeError: scale_dtype is another one. ValueError: anything else is not allowed.

    Example:
        >>> GroupGrid(bits=4, group_size=64).groups(100)
        2
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"GroupGrid: bits must be 4 or 8, got {self.bits!r}")
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 8 or size % 8):
            raise ValueError(
                f"GroupGrid: group_size must be a positive multiple of 8, or None for whole rows, got {size!r}"
            )
        if self.bits == 8 and not self.symmetric:
            raise ValueError("GroupGrid: bits=8 is symmetric only; pass symmetric=True, or bits=4")
        if self.scale_dtype not in SCALE_DTYPES:
            raise TypeError(f"GroupGrid: scale_dtype must be one of {SCALE_DTYPES}, got {self.scale_dtype!r}")

    @property
    def low(self) -> int:
        """The smallest stored integer."""
        return 0 if self.bits == 4 else -127

    @property
    def high(self) -> int:
        """The largest stored integer."""
        return 15 if self.bits == 4 else 127

    @property
    def middle(self) -> float:
        """The stored integer that means zero on a symmetric grid."""
        return 8.0 if self.bits == 4 else 0.0

    @property
    def reach(self) -> float:
        """Steps from zero to the largest magnitude: in 4 bits 7.5, half a step from both 7 and 8."""
        return 7.5 if self.bits == 4 else 127.0

    def size(self, inputs: int) -> int:
        """Inputs that share a scale in rows of ``inputs``."""
        return inputs if self.group_size is None else min(self.group_size, inputs)

    def groups(self, inputs: int) -> int:
        """Groups in a row of ``inputs``."""
        return -(-inputs // self.size(inputs))


@dataclass(frozen=True)
class GroupParams:
    """What turns a group's integers into weights; float32, ``[out, groups]``.

    Attributes:
        scale: values that the grid's scale dtype can hold.
        zero: is taken off the integer; whole numbers. All zero where there are minima.
        minimum: is added to the product; None for nothing.
    """

    scale: Tensor
    zero: Tensor
    minimum: Tensor | None = None


@dataclass(frozen=True)
class Quantized:
    """One weight on its grid: what every algorithm here returns.

    Attributes:
        values: float32 ``[out, in]`` holding the stored integers.
        params: what turns them into weights.
        grid: the grid.
        report: numbers and words about how it went, by name.
    """

    values: Tensor
    params: GroupParams
    grid: GroupGrid
    report: dict[str, Any] = field(default_factory=dict)

    def dequantize(self) -> Tensor:
        """The weight as the layer will see it, float32 ``[out, in]``."""
        size = self.grid.size(self.values.shape[1])
        return from_groups(restored(to_groups(self.values, size), self.params), self.values.shape[1])

    def split(self, rows: Sequence[int]) -> list[Quantized]:
        """The weights of several layers that were one below the other; the report stays behind."""
        parts = zip(
            self.values.split(list(rows)),
            self.params.scale.split(list(rows)),
            self.params.zero.split(list(rows)),
            [None] * len(rows) if self.params.minimum is None else self.params.minimum.split(list(rows)),
            strict=True,
        )
        return [Quantized(v, GroupParams(scale, zero, low), self.grid) for v, scale, zero, low in parts]

    def canonical(
        self, bias: Tensor | None = None, input_mode: str = "dynamic_16bit", activation: str = "none"
    ) -> W4Canonical | W8Canonical:
        """The portable form of a linear layer with this weight."""
        own = None if bias is None else bias.detach().to(torch.float32)
        inputs, params = self.values.shape[1], self.params
        scale, size = params.scale.to(self.grid.scale_dtype), self.grid.size(inputs)
        if self.grid.bits == 8:
            return W8Canonical(self.values.to(torch.int8), scale, own, size, input_mode, activation)
        zero_point = None
        if not self.grid.symmetric and params.minimum is None:
            zero_point = params.zero.to(torch.uint8)
        words = pack_nibbles(self.values.to(torch.uint8))
        return W4Canonical(words, scale, own, inputs, size, input_mode, zero_point, params.minimum, activation)


def checked_matrix(function: str, weight: Tensor) -> Tensor:
    """``weight`` as float32 ``[out, in]``, detached.

    Raises:
        TypeError: not floating point. ValueError: not ``[out, in]``, empty, NaN or infinity.
    """
    weight = check_weight(function, weight).detach()
    if weight.dim() != 2:
        raise ValueError(f"{function}: `weight` must be [out, in], got shape {list(weight.shape)}")
    return weight.to(torch.float32)


def rounded(groups: Tensor, params: GroupParams, grid: GroupGrid) -> Tensor:
    """The stored integers nearest to ``[out, groups, size]`` weights, as float32."""
    scale = params.scale.unsqueeze(-1)
    if params.minimum is not None:
        steps = torch.round((groups - params.minimum.unsqueeze(-1)) / scale)
    else:
        steps = torch.round(groups / scale) + params.zero.unsqueeze(-1)
    return steps.clamp_(grid.low, grid.high)


def restored(values: Tensor, params: GroupParams) -> Tensor:
    """The weights that ``[out, groups, size]`` integers stand for, in the layer's own float32 steps."""
    scale = params.scale.unsqueeze(-1)
    if params.minimum is not None:
        return values * scale + params.minimum.unsqueeze(-1)
    return (values - params.zero.unsqueeze(-1)) * scale
