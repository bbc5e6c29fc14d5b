"""The portable description of one block-sparse layer, int8 or float (docs/architecture.md §2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .block_csr import BlockCSR, weight_of
from .canonical import W8A8Canonical, moved
from .checks import float32_of

__all__ = ["SparseCanonical", "SparseW8A8Canonical"]


def _weight_shape(blocks: BlockCSR, kernel_size: tuple[int, int] | None) -> tuple[int, ...]:
    out, k = blocks.shape
    if kernel_size is None:
        return out, k
    height, width = kernel_size
    return out, k // (height * width), height, width


def _blocks_on(b: BlockCSR, device: torch.device) -> BlockCSR:
    return BlockCSR(b.crow.to(device), b.col.to(device), b.values.to(device), b.shape)


@dataclass(frozen=True)
class SparseW8A8Canonical:
    """The portable form of one block-sparse int8 layer; fields as in `W8A8Canonical` but for the weight.

    Attributes:
        blocks: int8 block-CSR of `block_csr.matrix_of` the weight.
        kernel_size: of a convolution (without groups); None for a linear layer.

    Example:
        >>> blocks = BlockCSR.from_dense(torch.ones(16, 8, dtype=torch.int8), (16, 4))
        >>> SparseW8A8Canonical(blocks, torch.ones(16), None, "dynamic", 1.0, 0).weight_shape
        (16, 8)
    """

    blocks: BlockCSR
    weight_scale: Tensor
    bias: Tensor | None
    input_mode: str
    input_scale: float
    input_zero_point: int
    activation: str = "none"
    kernel_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_scale", float32_of(self.input_scale))

    @property
    def groups(self) -> int:
        """Always 1."""
        return 1

    @property
    def family(self) -> str:
        """``"linear_w8a8"`` or ``"conv2d_w8a8"``: the operator is the dense layer's."""
        return "linear_w8a8" if self.kernel_size is None else "conv2d_w8a8"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight: ``[out, in]`` or ``[out, in, kh, kw]``."""
        return _weight_shape(self.blocks, self.kernel_size)

    def dense(self) -> W8A8Canonical:
        """The same layer with a dense weight (new memory)."""
        return W8A8Canonical(
            weight_of(self.blocks.to_dense(), self.weight_shape),
            self.weight_scale,
            self.bias,
            self.input_mode,
            self.input_scale,
            self.input_zero_point,
            self.activation,
        )

    def dequantize(self) -> Tensor:
        """The dense weight as float32."""
        return self.dense().dequantize()

    def to(self, device: torch.device) -> Self:
        """The same layer with its tensors on `device`."""
        return replace(
            self,
            blocks=_blocks_on(self.blocks, device),
            weight_scale=self.weight_scale.to(device),
            bias=moved(self.bias, device),
        )


@dataclass(frozen=True)
class SparseCanonical:
    """The portable form of one block-sparse float layer: family ``linear_bsr`` or ``conv2d_bsr``.

    Attributes:
        blocks: float32 or bfloat16 block-CSR of `block_csr.matrix_of` the weight.
        bias: float32 ``[out]`` or None.
        activation: a key of ``ACTIVATIONS``, fused behind bias and residual.
        kernel_size: of a convolution (without groups); None for a linear layer.

    Example:
        >>> SparseCanonical(BlockCSR.from_dense(torch.ones(16, 8), (16, 1)), None).family
        'linear_bsr'
    """

    blocks: BlockCSR
    bias: Tensor | None
    activation: str = "none"
    kernel_size: tuple[int, int] | None = None

    @property
    def family(self) -> str:
        """``"linear_bsr"`` or ``"conv2d_bsr"``."""
        return "linear_bsr" if self.kernel_size is None else "conv2d_bsr"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight: ``[out, in]`` or ``[out, in, kh, kw]``."""
        return _weight_shape(self.blocks, self.kernel_size)

    def dequantize(self) -> Tensor:
        """The dense weight as float32, in the weight's shape."""
        return weight_of(self.blocks.to_dense(), self.weight_shape).to(torch.float32)

    def to(self, device: torch.device) -> Self:
        """The same layer with its tensors on `device`."""
        return replace(self, blocks=_blocks_on(self.blocks, device), bias=moved(self.bias, device))
