"""The portable description of one layer with int8 weights in groups, activations not quantized (architecture §2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .canonical import moved

__all__ = ["W8Canonical"]


@dataclass(frozen=True)
class W8Canonical:
    """The portable form of one weight-only int8 linear layer (W8A16): ``weight = value * scale``.

    Attributes:
        weight: int8 ``[out, in]``; compressed-tensors' ``int-quantized`` and GGUF's Q8_0 hold the same integers.
        weight_scale: float32, bfloat16 or float16 ``[out, groups]``.
        bias: float32 ``[out]`` or None.
        group_size: neighbouring inputs that share a scale: a multiple of 8, or all of them; the last group may have
            fewer.
        input_mode: ``"float"``: activations are not quantized.
        activation: a key of ``ACTIVATIONS``, fused behind bias and residual.

    Example:
        >>> W8Canonical(torch.full((2, 16), 3, dtype=torch.int8), torch.ones(2, 1), None, 16).dequantize()[0, 0]
        tensor(3.)
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    group_size: int
    input_mode: str = "float"
    activation: str = "none"

    @property
    def family(self) -> str:
        """``"linear_w8"``."""
        return "linear_w8"

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.weight.shape[1]

    @property
    def groups(self) -> int:
        """Groups of an output channel."""
        return -(-self.in_features // self.group_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``[out, in]``."""
        return tuple(self.weight.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``[out, in]``, computed in `dtype`; in float64 it is exact."""
        wide = self.weight_scale.to(dtype).repeat_interleave(self.group_size, dim=1)
        return self.weight.to(dtype) * wide[:, : self.in_features]

    def to(self, device: torch.device) -> Self:
        """The same layer with its tensors on `device`."""
        return replace(
            self,
            weight=self.weight.to(device),
            weight_scale=self.weight_scale.to(device),
            bias=moved(self.bias, device),
        )
