"""What int8 layers add to packed ones: how their activations are quantized."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops.arithmetic import quantize_weight
from ..ops.canonical import W8A8Canonical
from .base import Canonical, PackedLayer

__all__ = ["QuantizedLayer", "quantized_canonical"]


class QuantizedLayer(PackedLayer):
    """Base of the layers with int8 weights and activations.

    Attributes:
        input_mode: ``"static"``, ``"dynamic"`` or ``"dynamic_symmetric"``.
        input_scale: float, of static activations; 1.0 when dynamic.
        input_zero_point: int in [0, 255], of static activations; 0 when dynamic.
    """

    canonical_classes: ClassVar[tuple[type[Canonical], ...]] = (W8A8Canonical,)
    remedy = (
        "quantized weights are packed for the kernels, read-only and not trainable; train the float model, with fake "
        "quantization from fastcompress.prepare, and convert or quantize it again"
    )

    input_mode: str
    input_scale: float
    input_zero_point: int

    def _adopt(self, c: Any) -> None:
        super()._adopt(c)
        self.input_mode = c.input_mode
        self.input_scale = c.input_scale
        self.input_zero_point = c.input_zero_point

    def _input_repr(self) -> list[str]:
        parts = [f"input_mode={self.input_mode!r}"]
        if self.input_mode == "static":
            parts.append(f"input_scale={self.input_scale:.6g}, input_zero_point={self.input_zero_point}")
        return parts


def quantized_canonical(
    module: Any,
    input_mode: str,
    input_scale: float,
    input_zero_point: int,
    activation: str,
    weight_scale: Tensor | None,
    weight_bits: int = 8,
) -> W8A8Canonical:
    """The dense int8 form of a float linear or convolution; see `QuantLinear.from_float`, `QuantConv2d.from_float`."""
    weight, scale = quantize_weight(module.weight, weight_scale, weight_bits)
    bias = None if module.bias is None else module.bias.detach().to(torch.float32).clone()
    groups = getattr(module, "groups", 1)
    return W8A8Canonical(
        weight, scale, bias, input_mode, input_scale, input_zero_point, activation, groups, weight_bits
    )
