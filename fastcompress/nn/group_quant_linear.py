"""``nn.Linear`` with four- or eight-bit weights that have a scale for each group of inputs."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from ..ops.canonical_w4 import W4Canonical
from ..ops.canonical_w8 import W8Canonical
from ..ops.rounding import round_to_nearest
from .base import PackedLayer
from .linear import PackedLinear
from .reordered import ReorderedLayer

__all__ = ["GroupQuantLinear", "GroupQuantized"]

#: Bits of a weight → operator.
_OPERATORS = {4: torch.ops.fastcompress.linear_w4.default, 8: torch.ops.fastcompress.linear_w8.default}


class GroupQuantized(PackedLayer):
    """Base of the layers whose weights have scales by group.

    Attributes:
        weight_bits: 4 or 8.
        group_size: neighbouring inputs that share a scale.
        symmetric: whether weights lie around zero; else there are zero points or minima.
        input_mode: ``"dynamic_16bit"`` (W4A16, W8A16) or ``"dynamic_symmetric"`` (W4A8).
    """

    canonical_classes = (W4Canonical, W8Canonical)
    remedy = (
        "quantized weights are packed for the kernels, read-only and not trainable; train the float model and quantize "
        "it again"
    )

    weight_bits: int
    group_size: int
    symmetric: bool
    input_mode: str

    def _adopt(self, c: Any) -> None:
        super()._adopt(c)
        self.weight_bits = 4 if isinstance(c, W4Canonical) else 8
        self.group_size = c.group_size
        self.input_mode = c.input_mode
        self.symmetric = not isinstance(c, W4Canonical) or (c.weight_zero_point is None and c.weight_min is None)

    def _input_repr(self) -> list[str]:
        kind = [] if self.symmetric else ["symmetric=False"]
        size = f"weight_bits={self.weight_bits}, group_size={self.group_size}"
        return [size, *kind, f"input_mode={self.input_mode!r}"]


class GroupQuantLinear(GroupQuantized, ReorderedLayer, PackedLinear):
    """Drop-in replacement of ``nn.Linear`` with weights of four or eight bits and a scale for each group of inputs.

    Activations are quantized when the layer runs: with ``input_mode="dynamic_16bit"`` (W4A16, W8A16) to 16 bits by row
    and group, off by at most 1/65278 of a group's largest magnitude; with ``"dynamic_symmetric"`` (W4A8) to 8 bits by
    row. A weight is ``(value - zero point) * scale``, or ``value * scale + minimum``. Results are the same bits on all
    processors and numbers of threads.

    Shapes:
        input ``[..., in_features]`` float32, bfloat16 or float16; output ``[..., out_features]`` in the input's dtype.

    Raises:
        TypeError: in ``forward``, for another dtype.
        ValueError: in ``forward``, for another number of features or another device.

    Example:
        >>> layer = GroupQuantLinear.from_float(torch.nn.Linear(256, 32), weight_bits=4, group_size=128)
        >>> layer(torch.randn(5, 256)).shape
        torch.Size([5, 32])

    Source: Frantar et al. 2023, "GPTQ", section 4 (groups; arXiv 2210.17323); the kernels explain themselves in
    csrc/cpu/families/grouped_impl.h.
    """

    _ordered_entry = "weight_scale"

    @property
    def operator(self) -> Any:  # type: ignore[override]
        """The operator of these weights, as compilers and autograd see it."""
        return _OPERATORS[self.weight_bits]

    @property
    def bound(self) -> Any:  # type: ignore[override]
        """Its C++ function."""
        return self.operator._op

    @classmethod
    def from_float(
        cls,
        module: nn.Linear,
        *,
        weight_bits: int = 4,
        group_size: int | None = None,
        symmetric: bool = True,
        scale_dtype: torch.dtype = torch.bfloat16,
        input_mode: str = "dynamic_16bit",
        activation: str = "none",
    ) -> Self:
        """Quantize a float layer, each weight to the nearest (RTN).

        Args:
            module: the layer; it is not changed.
            weight_bits: 4 or 8.
            group_size: inputs that share a scale, a multiple of 8; None for the whole row.
            symmetric: values around zero; else (four bits only) a zero point for each group.
            scale_dtype: float32, bfloat16 or float16.
            input_mode: ``"dynamic_16bit"`` or (four bits only) ``"dynamic_symmetric"``.
            activation: function to fuse behind the layer.

        Raises:
            TypeError: not an ``nn.Linear``, or a subclass with a ``forward`` of its own.
            ValueError: NaN/Inf in the weights, or an argument out of range.
        """
        cls._accept(module)
        c = round_to_nearest(
            module.weight,
            group_size,
            bits=weight_bits,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
            bias=module.bias,
            input_mode=input_mode,
            activation=activation,
        )
        return cls(c, dtype=module.weight.dtype).train(module.training)
