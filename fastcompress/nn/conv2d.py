"""What every packed convolution shares: geometry and the call."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops import checks
from .base import Canonical, PackedLayer
from .calls import below_autograd, is_compiling, is_grad_enabled, is_transforming, raise_blob_error, refuse_transforms
from .geometry import Padding, Padding4, padding4_of, pair, same_padding4

__all__ = ["PackedConv2d"]


class PackedConv2d(PackedLayer):
    """Base of the layers that replace ``nn.Conv2d``.

    Attributes:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as in torch.
        padding: as in torch, or the four integers when they are asymmetric.
        padding4: (top, bottom, left, right) in pixels; zeros with `same_padding`.
        same_padding: pad each input as TensorFlow's "SAME" does, by its own height and width.
    """

    replaces = "nn.Conv2d"
    padding_mode = "zeros"
    same_padding = False

    def __init__(
        self,
        c: Canonical,
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        same_padding: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        shape = c.weight_shape
        if len(shape) != 4:
            raise ValueError(f"{name}: `weight` must be [out, in/groups, kh, kw], got shape {list(shape)}")
        super().__init__(c, dtype)
        self.groups = getattr(c, "groups", 1)
        self.out_channels = shape[0]
        self.in_channels = shape[1] * self.groups
        self.kernel_size = (shape[2], shape[3])
        self.stride = pair(name, "stride", stride, 1)
        self.dilation = pair(name, "dilation", dilation, 1)
        self.padding4 = padding4_of(name, padding, self.kernel_size, self.stride, self.dilation)
        top, bottom, left, right = self.padding4
        symmetric = top == bottom and left == right
        self.padding: str | tuple[int, ...] = (
            padding if isinstance(padding, str) else (top, left) if symmetric else self.padding4
        )
        if same_padding:
            if any(self.padding4):
                raise ValueError(
                    f"{name}: `padding` must be 0 with same_padding=True, which computes it, got {padding!r}"
                )
            self.same_padding = True
            self.padding = "same"

    @classmethod
    def from_canonical(
        cls,
        c: Canonical,
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        same_padding: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Make a layer from canonical tensors of `canonical_classes` and geometry.

        Args:
            padding: what ``nn.Conv2d`` takes, or four integers (top, bottom, left, right).
            same_padding: compute the padding from each input instead, as TensorFlow does.
            dtype: logical dtype of ``weight``; by default the values' own, float32 for int8.

        Raises:
            TypeError, ValueError: bad geometry, or see ``fastcompress.ops.pack``.
        """
        return cls(c, stride=stride, padding=padding, dilation=dilation, same_padding=same_padding, dtype=dtype)

    @classmethod
    def _accept(cls, module: nn.Conv2d, padding: Padding | None) -> None:
        """Raise TypeError or ValueError unless `module` computes what ``nn.Conv2d`` does, but for its padding."""
        own = isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward
        if not isinstance(module, nn.Conv2d) or (own and padding is None):
            raise TypeError(
                f"{cls.__name__}.from_float: `module` must be an nn.Conv2d with nn.Conv2d's forward, got "
                f"{type(module).__name__}; if its forward only pads, pass `padding` (top, bottom, left, right)"
            )
        if module.padding_mode != "zeros":
            raise ValueError(
                f"{cls.__name__}.from_float: `module.padding_mode` must be 'zeros', got {module.padding_mode!r}; put "
                "an nn.ReflectionPad2d/nn.ReplicationPad2d/nn.CircularPad2d before a convolution without padding"
            )

    @classmethod
    def _like(cls, module: nn.Conv2d, c: Canonical, padding: Padding | None, same_padding: bool) -> Self:
        """The layer with `module`'s geometry, dtype and mode."""
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
        if self.reordered:
            return self._forward_reordered(input)
        if is_compiling():
            return self._traced(input)
        try:
            if is_transforming():
                refuse_transforms(type(self).__name__, input)
                return self._traced(input)
            if input.requires_grad and is_grad_enabled():
                return self._traced(input)
            with below_autograd():
                return self.bound(
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

    def _padding_of(self, input: Tensor) -> Padding4:
        if not self.same_padding or input.dim() < 2:
            return self.padding4
        return same_padding4(input.shape[-2], input.shape[-1], self.kernel_size, self.stride, self.dilation)

    def _constants(self, input: Tensor) -> tuple[Any, ...]:
        return self.out_channels, self.kernel_size, self.stride, self._padding_of(input), self.dilation

    def _diagnose(self, input: Tensor) -> None:
        """Raise TypeError or ValueError if the input is at fault; the operator itself can only raise RuntimeError."""
        name = type(self).__name__
        checks.check_tensor(name, "input", input)
        geometry = (self.kernel_size, self.stride, self._padding_of(input), self.dilation)
        op = self.operator._schema.name.split("::")[1]
        checks.check_conv2d(input, self.packed, self.out_channels, *geometry, op=op)
        if input.shape[-3] != self.in_channels:
            raise ValueError(
                f"{name}: `input` has {input.shape[-3]} channels (shape {list(input.shape)}), the layer takes "
                f"in_channels={self.in_channels}"
            )

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        same = ", same_padding=True" if self.same_padding else ""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}{same}, dilation={self.dilation}, groups={self.groups}, {self._common_repr()}"
        )
