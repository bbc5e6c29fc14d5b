"""``nn.Conv2d`` with int8 weights and activations."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.arithmetic import quantize_weight
from ..ops.canonical import W8A8Canonical
from .base import QuantizedLayer, below_autograd, is_grad_enabled, is_transforming, raise_blob_error, refuse_transforms

__all__ = ["QuantConv2d", "same_padding4"]

_op = torch.ops.fastcompress.conv2d_w8a8.default
_call: Any = _op._op  # the bound C++ function: one Python frame less on the hot path
_is_compiling = torch.compiler.is_compiling

Padding = int | str | Sequence[int]


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"QuantConv2d: `{name}` must be one or two integers >= {least}, got {value!r}")
    return pair[0], pair[1]


def _padding4(
    padding: Padding, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from any spelling that torch knows, or from itself."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same" or stride != (1, 1):
            raise ValueError(
                f'QuantConv2d: `padding` must be "valid", "same" (with stride 1) or integers, got {padding!r} '
                f"with stride {stride}"
            )
        down, across = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
        return (down // 2, down - down // 2, across // 2, across - across // 2)
    if not isinstance(padding, int) and len(padding) == 4:
        top, bottom, left, right = padding
        if min(padding) < 0:
            raise ValueError(f"QuantConv2d: `padding` must not be negative, got {padding!r}")
        return (top, bottom, left, right)
    vertical, horizontal = _pair("padding", padding, 0)
    return (vertical, vertical, horizontal, horizontal)


def same_padding4(
    height: int, width: int, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """TensorFlow's "SAME" as (top, bottom, left, right): ceil(size / stride) outputs, the odd pixel at the end."""
    down, across = (
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip((height, width), kernel_size, stride, dilation, strict=True)
    )
    return (down // 2, down - down // 2, across // 2, across - across // 2)


class QuantConv2d(QuantizedLayer):
    """Drop-in replacement of ``nn.Conv2d``: s8 weights per output channel, static u8 activations, fused epilogue.

    Shapes:
        input ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``, float32, bfloat16, float16 (or uint8 quantized with
        the layer's parameters), contiguous or channels-last; output ``[N, out_channels, H', W']`` in the input's memory
        format and dtype (float32 for uint8). Padding is the quantized zero.

    Attributes:
        padding: as in torch, or the four integers when they are asymmetric.
        padding4: (top, bottom, left, right) in pixels; zeros with `same_padding`.
        same_padding: pad each input as TensorFlow's "SAME" does, by its own height and width.

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

    replaces = "nn.Conv2d"
    padding_mode = "zeros"
    same_padding = False

    def __init__(
        self,
        c: W8A8Canonical,
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        same_padding: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if c.weight.dim() != 4:
            raise ValueError(
                f"QuantConv2d: `weight` must be [out, in/groups, kh, kw], got shape {list(c.weight.shape)}"
            )
        super().__init__(c, dtype)
        self.groups = c.groups
        self.out_channels = c.weight.shape[0]
        self.in_channels = c.weight.shape[1] * c.groups
        self.kernel_size = (c.weight.shape[2], c.weight.shape[3])
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        self.padding4 = _padding4(padding, self.kernel_size, self.stride, self.dilation)
        top, bottom, left, right = self.padding4
        symmetric = top == bottom and left == right
        self.padding: str | tuple[int, ...] = (
            padding if isinstance(padding, str) else (top, left) if symmetric else self.padding4
        )
        if same_padding:
            if any(self.padding4):
                raise ValueError(
                    f"QuantConv2d: `padding` must be 0 with same_padding=True, which computes it, got {padding!r}"
                )
            self.same_padding = True
            self.padding = "same"

    @classmethod
    def from_canonical(
        cls,
        c: W8A8Canonical,
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        same_padding: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Make a layer from canonical tensors and geometry; `dtype` is the logical dtype of ``weight``.

        `padding` takes what ``nn.Conv2d`` takes, and four integers (top, bottom, left, right). `same_padding` computes
        it from each input instead, as TensorFlow does.

        Raises:
            TypeError, ValueError: bad geometry, or see ``fastcompress.ops.pack``.
        """
        return cls(c, stride=stride, padding=padding, dilation=dilation, same_padding=same_padding, dtype=dtype)

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
            weight_scale: float32 ``[out_channels]``; by default from each channel's largest magnitude.
            padding: replaces the module's own, for subclasses whose ``forward`` pads by itself.
            same_padding: the padding is computed from each input's size as TensorFlow does; `padding` must be 0.

        Raises:
            TypeError: not an ``nn.Conv2d``, or a subclass with a ``forward`` of its own and no `padding` given.
            ValueError: padding that is not zeros, NaN/Inf in the weights, or a parameter out of range.
        """
        own = isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward
        if not isinstance(module, nn.Conv2d) or (own and padding is None):
            raise TypeError(
                f"QuantConv2d.from_float: `module` must be an nn.Conv2d with nn.Conv2d's forward, got "
                f"{type(module).__name__}; if its forward only pads, pass `padding` (top, bottom, left, right)"
            )
        if module.padding_mode != "zeros":
            raise ValueError(
                f"QuantConv2d.from_float: `module.padding_mode` must be 'zeros', got {module.padding_mode!r}; put "
                "an nn.ReflectionPad2d/nn.ReplicationPad2d/nn.CircularPad2d before a convolution without padding"
            )
        weight, scale = quantize_weight(module.weight, weight_scale)
        bias = None if module.bias is None else module.bias.detach().to(torch.float32).clone()
        c = W8A8Canonical(
            weight, scale, bias, input_mode, input_scale, input_zero_point, activation, groups=module.groups
        )
        layer = cls(
            c,
            stride=module.stride,
            padding=module.padding if padding is None else padding,
            dilation=module.dilation,
            same_padding=same_padding,
            dtype=module.weight.dtype,
        )
        return layer.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: ``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``."""
        if _is_compiling():
            return self._traced(input)
        try:
            if is_transforming():
                refuse_transforms("QuantConv2d", input)
                return self._traced(input)
            if input.requires_grad and is_grad_enabled():
                return self._traced(input)
            with below_autograd():
                return _call(
                    input,
                    self._buffers["packed"],
                    self.out_channels,
                    self.kernel_size,
                    self.stride,
                    self._padding_of(input) if self.same_padding else self.padding4,
                    self.dilation,
                )
        except Exception as error:
            self._diagnose(input)
            raise_blob_error(error)
            raise

    def _padding_of(self, input: Tensor) -> tuple[int, int, int, int]:
        if not self.same_padding or input.dim() < 2:
            return self.padding4
        return same_padding4(input.shape[-2], input.shape[-1], self.kernel_size, self.stride, self.dilation)

    def _traced(self, input: Tensor) -> Tensor:
        """The call as compilers and autograd should see it."""
        padding = self._padding_of(input)
        return _op(input, self.packed, self.out_channels, self.kernel_size, self.stride, padding, self.dilation)

    def _diagnose(self, input: Tensor) -> None:
        """Raise TypeError or ValueError if the input is at fault; the operator itself can only raise RuntimeError."""
        checks.check_tensor("QuantConv2d", "input", input)
        padding = self._padding_of(input)
        checks.check_conv2d(
            input, self.packed, self.out_channels, self.kernel_size, self.stride, padding, self.dilation
        )
        if input.shape[-3] != self.in_channels:
            raise ValueError(
                f"QuantConv2d: `input` has {input.shape[-3]} channels (shape {list(input.shape)}), the layer takes "
                f"in_channels={self.in_channels}"
            )

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        same = ", same_padding=True" if self.same_padding else ""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}{same}, dilation={self.dilation}, groups={self.groups}, {self._common_repr()}"
        )
