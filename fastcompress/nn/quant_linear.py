"""``nn.Linear`` with int8 weights and activations."""

from typing import Self

import torch
from torch import Tensor, nn

from .linear import PackedLinear
from .quantized import QuantizedLayer, quantized_canonical

__all__ = ["QuantLinear"]


class QuantLinear(PackedLinear, QuantizedLayer):
    """Drop-in replacement of ``nn.Linear``: s8 weights per output channel, u8 activations, int32 sums, fused epilogue.

    Shapes:
        input ``[..., in_features]`` float32, bfloat16 or float16 (or uint8 quantized with the static parameters);
        output ``[..., out_features]`` in the input's dtype (float32 for uint8).

    Raises:
        TypeError: in ``forward``, for another dtype.
        ValueError: in ``forward``, for another number of features or another device.

    Example:
        >>> layer = QuantLinear.from_float(torch.nn.Linear(64, 32), input_mode="dynamic", activation="gelu")
        >>> layer(torch.randn(5, 64)).shape
        torch.Size([5, 32])

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 2 (arXiv 1712.05877).
    """

    operator = torch.ops.fastcompress.linear_w8a8.default
    bound = operator._op

    @classmethod
    def from_float(
        cls,
        module: nn.Linear,
        *,
        input_mode: str,
        input_scale: float = 1.0,
        input_zero_point: int = 0,
        activation: str = "none",
        weight_scale: Tensor | None = None,
    ) -> Self:
        """Quantize a float layer.

        Args:
            module: the layer; it is not changed.
            input_mode: ``"static"`` (with `input_scale` and `input_zero_point` from calibration), ``"dynamic"`` or
                ``"dynamic_symmetric"`` (parameters per token at run time).
            activation: function to fuse behind the layer.
            weight_scale: float32 ``[out_features]``; by default from each channel's largest magnitude.

        Raises:
            TypeError: not an ``nn.Linear``, or a subclass with a ``forward`` of its own.
            ValueError: NaN/Inf in the weights, or a parameter out of range.
        """
        cls._accept(module)
        c = quantized_canonical(module, input_mode, input_scale, input_zero_point, activation, weight_scale)
        return cls(c, dtype=module.weight.dtype).train(module.training)

    def _diagnose(self, input: Tensor) -> None:
        super()._diagnose(input)
        if input.dtype == torch.uint8 and self.input_mode != "static":
            raise ValueError(
                f"{type(self).__name__}: `input` is uint8, but input_mode={self.input_mode!r} quantizes floats itself; "
                "pass the float tensor"
            )
