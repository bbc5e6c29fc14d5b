"""Torch's own oneDNN int8 convolution as a baseline: the two eager ways that exist, of which the faster one counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["float_calls", "u8_calls"]


class TorchInt8Conv:
    """A convolution quantized with torch's operators: u8 activations per tensor, s8 weights per channel."""

    def __init__(self, conv: nn.Conv2d, x: Tensor, scale: float, zero_point: int) -> None:
        weight = conv.weight.detach()
        self.scale, self.zero_point = scale, zero_point
        self.weight_scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-30) / 127
        zeros = torch.zeros(conv.out_channels, dtype=torch.int64)
        self.weight_zero_point = zeros
        geometry = [list(conv.stride), [int(side) for side in conv.padding], list(conv.dilation), conv.groups]
        self.geometry = geometry
        self.bias = None if conv.bias is None else conv.bias.detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = torch.quantize_per_channel(weight, self.weight_scale.double(), zeros, 0, torch.qint8)
            torch.backends.quantized.engine = "onednn"
            self.params = torch.ops.quantized.conv2d_prepack(quantized, self.bias, *geometry)
        self.packed = torch.ops.onednn.qconv_prepack(
            quantized.int_repr(), self.weight_scale, scale, zero_point, *geometry, list(x.shape)
        )

    def quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` as torch's quint8 tensor; its vectorised quantizer keeps channels-last."""
        return torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)

    def pointwise(self, q: Tensor, out_dtype: torch.dtype) -> Tensor:
        """Run ``onednn::qconv2d_pointwise`` on plain u8, as torch.compile's quantized graphs do."""
        out_scale, out_zero = (1.0, 0) if out_dtype == torch.float32 else (self.scale, self.zero_point)
        arguments = [q, self.scale, self.zero_point, self.packed, self.weight_scale, self.weight_zero_point, self.bias]
        rest = [*self.geometry, out_scale, out_zero, out_dtype, "none", [], ""]
        return torch.ops.onednn.qconv2d_pointwise(*arguments, *rest)


def plain_u8(q: Tensor) -> Tensor:
    """Return a quint8 tensor's bytes as a uint8 tensor without a copy."""
    return torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage(), 0, q.size(), q.stride())


def float_calls(conv: nn.Conv2d, x: Tensor, scale: float, zero_point: int) -> dict[str, Callable[[], object]]:
    """Return the f32-in, f32-out candidates: quantize, convolve in int8, give float back."""
    int8 = TorchInt8Conv(conv, x, scale, zero_point)
    conv_new = torch.ops.quantized.conv2d.new
    return {
        "onednn pointwise": lambda: int8.pointwise(plain_u8(int8.quantize(x)), torch.float32),
        "onednn quantized": lambda: conv_new(int8.quantize(x), int8.params, scale, zero_point).dequantize(),
    }


def u8_calls(conv: nn.Conv2d, x: Tensor, scale: float, zero_point: int) -> dict[str, Callable[[], object]]:
    """Return the u8-in, u8-out candidates: the convolution alone."""
    int8 = TorchInt8Conv(conv, x, scale, zero_point)
    q = int8.quantize(x)
    u8 = plain_u8(q)
    conv_new = torch.ops.quantized.conv2d.new
    return {
        "onednn pointwise u8": lambda: int8.pointwise(u8, torch.uint8),
        "onednn quantized u8": lambda: conv_new(q, int8.params, scale, zero_point),
    }
