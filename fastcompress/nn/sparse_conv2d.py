"""``nn.Conv2d`` with block-sparse float weights."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from ..ops.canonical_sparse import SparseCanonical
from .block_sparse import BlockSparse, coarsest_block, sparse_canonical
from .conv2d import PackedConv2d
from .geometry import Padding
from .orders import Orders

__all__ = ["SparseConv2d"]


class SparseConv2d(BlockSparse, PackedConv2d):
    """Drop-in replacement of a pruned ``nn.Conv2d``: only non-zero blocks are stored and run, in float.

    Blocks are outputs x input channels at one tap; their shapes, the ``state_dict`` (of the matrix ``[out, kh*kw*in]``)
    and casts are those of `SparseLinear`. One group, padding with zeros.

    Shapes:
        input ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``, float32, bfloat16 or float16, contiguous or
        channels-last; output ``[N, out_channels, H', W']`` in the input's memory format and dtype.

    Raises:
        TypeError: in ``forward``, for another dtype.
        ValueError: in ``forward``, for another rank, number of channels or device.

    Example:
        >>> pruned = fc.prune(torch.nn.Conv2d(16, 32, 3), 0.9, "16x1")
        >>> SparseConv2d.from_float(pruned)(torch.rand(1, 16, 8, 8)).shape
        torch.Size([1, 32, 6, 6])

    Source: the block format is that of ``torch.sparse_bsr_tensor``; csrc/cpu/families explains the kernels.
    """

    operator = torch.ops.fastcompress.conv2d_bsr.default
    bound = operator._op
    _channel_dim = -3
    canonical_classes = (SparseCanonical,)
    dense = "nn.Conv2d"

    @classmethod
    def from_float(
        cls,
        module: nn.Conv2d,
        *,
        block_size: tuple[int, int] | None = None,
        activation: str = "none",
        padding: Padding | None = None,
        same_padding: bool = False,
        orders: Orders | None = None,
    ) -> Self:
        """Take over the non-zero blocks of a float layer, masked or not; values keep the weight's dtype.

        Args:
            module: float32 or bfloat16, without groups; it is not changed.
            block_size: ``(outputs, inputs)``; by default the coarsest that fits the zeros.
            activation: function to fuse behind the layer.
            padding: replaces the module's own, for subclasses whose ``forward`` pads by itself.
            same_padding: the padding is computed from each input's size as TensorFlow does; `padding` must be 0.
            orders: ``(input_order, output_order)`` in which the weight is cut into blocks; by default those that
                `prune` stored with the mask, where they save blocks. The layer undoes them.

        Raises:
            TypeError: not an ``nn.Conv2d``, a subclass with a ``forward`` of its own and no `padding`, another dtype.
            ValueError: groups, padding that is not zeros, NaN or infinity, or a weight without such blocks.
        """
        cls._accept(module, padding)
        cls._refuse_misfit(module, block_size)
        checked = None if orders is None else cls._checked(orders, module.weight.shape)
        block = coarsest_block(module, checked) if block_size is None else block_size
        chosen = cls._orders_of(module, block, checked)
        c = sparse_canonical(cls.__name__, module, block, activation, chosen)
        return cls._like(module, c, padding, same_padding).reorder(*chosen)
