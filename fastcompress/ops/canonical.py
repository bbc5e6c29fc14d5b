"""The portable description of one int8 layer (docs/architecture.md §2): what is packed and what files hold."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .block_csr import BlockCSR
from .checks import float32_of

__all__ = ["SparseW8A8Canonical", "W8A8Canonical"]


@dataclass(frozen=True)
class W8A8Canonical:
    """The portable form of one int8 layer: family ``linear_w8a8`` (2-D weight) or ``conv2d_w8a8`` (4-D).

    Attributes:
        weight: int8 ``[out, in]`` or ``[out, in/groups, kh, kw]``.
        weight_scale: float32 ``[out]``.
        bias: float32 ``[out]`` or None.
        input_mode: ``"static"``, ``"dynamic"`` or ``"dynamic_symmetric"`` (conv: static only).
        input_scale: of static u8 activations, rounded to float32 here; 1.0 when dynamic.
        input_zero_point: of static u8 activations; 0 when dynamic.
        activation: a key of ``ACTIVATIONS``, fused behind bias and residual.
        groups: of the convolution.

    Example:
        >>> c = W8A8Canonical(torch.ones(2, 3, dtype=torch.int8), torch.ones(2), None, "dynamic", 1.0, 0)
        >>> c.family
        'linear_w8a8'
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_mode: str
    input_scale: float
    input_zero_point: int
    activation: str = "none"
    groups: int = 1

    def __post_init__(self) -> None:
        # Blobs and files hold float32; rounding here makes unpack(pack(c)) equal to c.
        object.__setattr__(self, "input_scale", float32_of(self.input_scale))

    @property
    def family(self) -> str:
        """``"linear_w8a8"`` or ``"conv2d_w8a8"``."""
        return "linear_w8a8" if self.weight.dim() == 2 else "conv2d_w8a8"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.weight.shape)

    def dequantize(self) -> Tensor:
        """The weight as float32, ``weight * weight_scale`` per output channel, in the weight's shape."""
        wide = self.weight_scale.reshape(-1, *[1] * (self.weight.dim() - 1))
        return self.weight.to(torch.float32) * wide

    def to(self, device: torch.device) -> Self:
        """The same layer with its tensors on `device`."""
        return replace(
            self,
            weight=self.weight.to(device),
            weight_scale=self.weight_scale.to(device),
            bias=_moved(self.bias, device),
        )


@dataclass(frozen=True)
class SparseW8A8Canonical:
    """The portable form of one block-sparse int8 linear; fields as in `W8A8Canonical` but for the weight.

    Attributes:
        blocks: int8 block-CSR of ``[out, in]``.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_scale", float32_of(self.input_scale))

    @property
    def groups(self) -> int:
        """A linear layer has one."""
        return 1

    @property
    def family(self) -> str:
        """``"linear_w8a8"``: the operator is the dense layer's."""
        return "linear_w8a8"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return tuple(self.blocks.shape)

    def dense(self) -> W8A8Canonical:
        """The same layer with a dense weight (new memory)."""
        return W8A8Canonical(
            self.blocks.to_dense(),
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
        b = self.blocks
        moved = BlockCSR(b.crow.to(device), b.col.to(device), b.values.to(device), b.shape)
        return replace(self, blocks=moved, weight_scale=self.weight_scale.to(device), bias=_moved(self.bias, device))


def _moved(bias: Tensor | None, device: torch.device) -> Tensor | None:
    return None if bias is None else bias.to(device)
