"""The portable description of one layer with four-bit weights (docs/architecture.md §2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .canonical import moved

__all__ = ["W4Canonical", "pack_nibbles", "unpack_nibbles"]

_PER_WORD = 8


def pack_nibbles(values: Tensor) -> Tensor:
    """Values 0 to 15 ``[out, in]`` as int32 words ``[out, ceil(in / 8)]``, the first one in the lowest bits.

    On a little-endian machine, the only kind there are kernels for, the words' bytes are in the order of their values.
    """
    out, inputs = values.shape
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -inputs % _PER_WORD))
    pairs = padded.reshape(out, padded.shape[1] // 2, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).contiguous().view(torch.int32)


def unpack_nibbles(words: Tensor, inputs: int) -> Tensor:
    """What `pack_nibbles` packed, uint8 ``[out, inputs]``."""
    octets = words.contiguous().view(torch.uint8)
    values = torch.stack((octets & 15, octets >> 4), -1)
    return values.reshape(words.shape[0], 2 * octets.shape[1])[:, :inputs].contiguous()


@dataclass(frozen=True)
class W4Canonical:
    """The portable form of one linear layer with four-bit weights: ``weight = (value - zero point) * scale``.

    Attributes:
        weight_packed: int32 ``[out, ceil(in / 8)]``, values 0 to 15 in the order of `pack_nibbles`; compressed-tensors'
            ``pack-quantized`` layout, whose value is ours less 8.
        weight_scale: float32, bfloat16 or float16 ``[out, groups]``.
        bias: float32 ``[out]`` or None.
        in_features: inputs.
        group_size: neighbouring inputs that share a scale: a multiple of 8, or all of them; the last group may have
            fewer.
        input_mode: ``"dynamic_symmetric"``: int8 activations (W4A8); ``"dynamic_16bit"``: 16 bits (W4A16).
        weight_zero_point: uint8 ``[out, groups]``, 0 to 15, or None: 8.
        weight_min: float32 ``[out, groups]`` or None: ``weight = value * scale + minimum`` in place of a zero point.
        activation: a key of ``ACTIVATIONS``, fused behind bias and residual.

    Example:
        >>> words = pack_nibbles(torch.full((2, 16), 9, dtype=torch.uint8))
        >>> W4Canonical(words, torch.ones(2, 1), None, 16, 16).dequantize()[0, 0]
        tensor(1.)
    """

    weight_packed: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    in_features: int
    group_size: int
    input_mode: str = "dynamic_symmetric"
    weight_zero_point: Tensor | None = None
    weight_min: Tensor | None = None
    activation: str = "none"

    @property
    def family(self) -> str:
        """``"linear_w4"``."""
        return "linear_w4"

    @property
    def groups(self) -> int:
        """Groups of an output channel."""
        return -(-self.in_features // self.group_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``[out, in]``."""
        return self.weight_packed.shape[0], self.in_features

    def values(self) -> Tensor:
        """The weight's integers, uint8 ``[out, in]``."""
        return unpack_nibbles(self.weight_packed, self.in_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``[out, in]``, computed in `dtype`; in float64 it is exact where there are no minima."""
        scale, values = self._per_input(self.weight_scale, dtype), self.values().to(dtype)
        if self.weight_min is not None:
            return values * scale + self._per_input(self.weight_min, dtype)
        zero = 8.0 if self.weight_zero_point is None else self._per_input(self.weight_zero_point, dtype)
        return (values - zero) * scale

    def _per_input(self, grouped: Tensor, dtype: torch.dtype) -> Tensor:
        wide = grouped.to(dtype).repeat_interleave(self.group_size, dim=1)
        return wide[:, : self.in_features]

    def to(self, device: torch.device) -> Self:
        """The same layer with its tensors on `device`."""
        return replace(
            self,
            weight_packed=self.weight_packed.to(device),
            weight_scale=self.weight_scale.to(device),
            bias=moved(self.bias, device),
            weight_zero_point=moved(self.weight_zero_point, device),
            weight_min=moved(self.weight_min, device),
        )
