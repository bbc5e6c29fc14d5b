"""``nn.Conv2d`` with int8 weights and activations."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from .conv2d import PackedConv2d
from .geometry import Padding
from .quantized import QuantizedLayer, quantized_canonical

__all__ = ["QuantConv2d"]


class QuantConv2d(PackedConv2d, QuantizedLayer):
    """Drop-in replacement of ``nn.Conv2d``: s8 weights per output channel, static u8 activations, fused epilogue.

    Weights of four bits take half the memory; a call unpacks them to s8 first. The results are the same integers.

    Attributes:
        weight_bits: 8 or 4.

    Shapes:
        input ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``, float32, bfloat16, float16 (or uint8 quantized with
        the layer's parameters), contiguous or channels-last; output ``[N, out_channels, H', W']`` in the input's memory
        format and dtype (float32 for uint8). Padding is the quantized zero.

    Raises:
        TypeError: in ``forward``, for another dtype.
        ValueError: in ``forward``, for another rank, number of channels or device.

    Example:
        >>> layer = QuantConv2d.from_float(torch.nn.Conv2d(3, 8, 3), input_mode="static", input_scale=0.02)
        >>> layer(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 8, 14, 14])

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 2 (arXiv 1712.05877).
    """

    weight_bits: int = 8

    operator = torch.ops.fastcompress.conv2d_w8a8.default
    bound = operator._op

    def _adopt(self, c: Any) -> None:
        super()._adopt(c)
        self.weight_bits = getattr(c, "weight_bits", 8)  # blocks have eight

    def _input_repr(self) -> list[str]:
        bits = ["weight_bits=4"] if self.weight_bits == 4 else []
        return bits + super()._input_repr()

    @classmethod
    def from_float(
        cls,
        module: nn.Conv2d,
        *,
        input_mode: str = "static",
        input_scale: float = 1.0,
        input_zero_point: int = 0,
        activation: str = "none",
        weight_scale: Tensor | None = None,
        weight_bits: int = 8,
        padding: Padding | None = None,
        same_padding: bool = False,
    ) -> Self:
        """Quantize a float layer.

        Args:
            module: the layer; it is not changed.
            input_mode: ``"static"``; convolutions have no other.
            input_scale: of the u8 activations, from calibration.
            input_zero_point: of the u8 activations, in [0, 255].
            activation: function to fuse behind the layer.
            weight_scale: float32 ``[out_channels]``; by default from each channel's largest magnitude, which is 127
                steps, or 7.5 with four bits.
            weight_bits: 8, values -127 to 127, or 4, values -8 to 7; depthwise convolutions take 8 only.
            padding: replaces the module's own, for subclasses whose ``forward`` pads by itself.
            same_padding: the padding is computed from each input's size as TensorFlow does; `padding` must be 0.

        Raises:
            TypeError: not an ``nn.Conv2d``, or a subclass with a ``forward`` of its own and no `padding` given.
            ValueError: padding that is not zeros, NaN/Inf in the weights, or a parameter out of range.
        """
        cls._accept(module, padding)
        c = quantized_canonical(
            module, input_mode, input_scale, input_zero_point, activation, weight_scale, weight_bits
        )
        return cls._like(module, c, padding, same_padding)
