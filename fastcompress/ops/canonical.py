"""The portable description of one int8 layer (docs/architecture.md §2): what is packed and what files hold."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .checks import float32_of

__all__ = ["W8A8Canonical", "moved"]


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
        weight_bits: of a stored weight: 8, or 4 for convolutions (not depthwise ones) whose values all lie in [-8, 7].
            The arithmetic is the same.

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
    weight_bits: int = 8

    def __post_init__(self) -> None:
        # Blobs and files hold float32; rounding here makes unpack(pack(c)) equal to c.
        object.__setattr__(self, "input_scale", float32_of(self.input_scale))

    @property
    def family(self) -> str:
        """``"linear_w8a8"`` or ``"conv2d_w8a8"``."""
        return "linear_w8a8" if self.weight.dim() == 2 else "conv2d_w8a8"

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution each of whose outputs sees one input channel of its own."""
        out, *inputs = self.weight.shape
        return len(inputs) == 3 and inputs[0] == 1 and self.groups == out > 1

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
            bias=moved(self.bias, device),
        )


def moved(bias: Tensor | None, device: torch.device) -> Tensor | None:
    """A bias on `device`; None stays None."""
    return None if bias is None else bias.to(device)
