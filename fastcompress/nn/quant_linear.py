"""``nn.Linear`` with int8 weights and activations."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.arithmetic import quantize_weight
from ..ops.canonical import W8A8Canonical
from .base import QuantizedLayer, below_autograd, is_grad_enabled, is_transforming, raise_blob_error, refuse_transforms

__all__ = ["QuantLinear"]

_op = torch.ops.fastcompress.linear_w8a8.default
_call: Any = _op._op  # the bound C++ function: one Python frame less on the hot path
_is_compiling = torch.compiler.is_compiling


class QuantLinear(QuantizedLayer):
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

    replaces = "nn.Linear"

    def __init__(self, c: W8A8Canonical, *, dtype: torch.dtype = torch.float32) -> None:
        if c.weight.dim() != 2:
            raise ValueError(f"QuantLinear: `weight` must be [out, in], got shape {list(c.weight.shape)}")
        super().__init__(c, dtype)
        self.out_features, self.in_features = c.weight.shape

    @classmethod
    def from_canonical(cls, c: W8A8Canonical, *, dtype: torch.dtype = torch.float32) -> Self:
        """Make a layer from canonical tensors; `dtype` is the logical dtype of ``weight``.

        Raises:
            TypeError, ValueError: see ``fastcompress.ops.pack``.
        """
        return cls(c, dtype=dtype)

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
            ValueError: NaN/Inf in the weights, a parameter out of range, or a shape this kind of layer cannot have.
        """
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            raise TypeError(
                f"{cls.__name__}.from_float: `module` must be an nn.Linear with nn.Linear's forward, got "
                f"{type(module).__name__}; copy its weights into an nn.Linear that computes the same"
            )
        problem = cls.problem(module)
        if problem is not None:
            raise ValueError(f"{cls.__name__}.from_float: {problem}; use QuantLinear")
        weight, scale = quantize_weight(module.weight, weight_scale)
        bias = None if module.bias is None else module.bias.detach().to(torch.float32).clone()
        c = cls._canonical_of(weight, scale, bias, input_mode, input_scale, input_zero_point, activation)
        return cls(c, dtype=module.weight.dtype).train(module.training)

    @staticmethod
    def problem(module: nn.Linear) -> str | None:
        """Why a layer of this shape cannot become one of this kind, or None."""
        return None

    @staticmethod
    def _canonical_of(weight: Tensor, *rest: Any) -> Any:
        """The canonical form of an int8 weight and what follows it there."""
        return W8A8Canonical(weight, *rest)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: ``[..., in_features]`` to ``[..., out_features]``."""
        if _is_compiling():
            return _op(input, self.packed, self.out_features)
        try:
            if is_transforming():
                refuse_transforms("QuantLinear", input)
                return _op(input, self.packed, self.out_features)
            if input.requires_grad and is_grad_enabled():
                return _op(input, self.packed, self.out_features)
            with below_autograd():
                return _call(input, self._buffers["packed"], self.out_features)
        except Exception as error:
            self._diagnose(input)
            raise_blob_error(error)
            raise

    def _diagnose(self, input: Tensor) -> None:
        """Raise TypeError or ValueError if the input is at fault; the operator itself can only raise RuntimeError."""
        checks.check_tensor("QuantLinear", "input", input)
        checks.check_linear(input, self.packed, self.out_features)
        if input.shape[-1] != self.in_features:
            raise ValueError(
                f"QuantLinear: `input` has {input.shape[-1]} features (shape {list(input.shape)}), the layer takes "
                f"in_features={self.in_features}"
            )
        if input.dtype == torch.uint8 and self.input_mode != "static":
            raise ValueError(
                f"QuantLinear: `input` is uint8, but input_mode={self.input_mode!r} quantizes floats itself; pass the "
                "float tensor"
            )

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._common_repr()}"
