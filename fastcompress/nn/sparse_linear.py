"""``nn.Linear`` with block-sparse float weights."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from ..ops.canonical_sparse import SparseCanonical
from .block_sparse import BlockSparse, coarsest_block, sparse_canonical
from .linear import PackedLinear
from .orders import Orders

__all__ = ["SparseLinear"]


class SparseLinear(BlockSparse, PackedLinear):
    """Drop-in replacement of a pruned ``nn.Linear``: only non-zero blocks are stored and run, in float.

    Blocks (outputs x inputs) of float32 values are 16x1 (the fastest), 4x1 or 1x1, of bfloat16 values 16x2. Its
    ``state_dict`` holds block-CSR: ``crow`` int32 ``[out/bh + 1]``, ``col`` int32 ``[blocks]``, ``values``
    ``[blocks, bh, bw]``, and ``bias`` float32. Casting the layer changes what ``weight`` reads as, never the values.

    Shapes:
        input ``[..., in_features]`` float32, bfloat16 or float16; output ``[..., out_features]`` in the input's dtype.

    Raises:
        TypeError: in ``forward``, for another dtype.
        ValueError: in ``forward``, for another number of features or another device.

    Example:
        >>> pruned = fc.prune(torch.nn.Linear(64, 32), 0.9, "16x1")
        >>> layer = SparseLinear.from_float(pruned)
        >>> layer.block_size, layer(torch.randn(5, 64)).shape
        ((16, 1), torch.Size([5, 32]))

    Source: the block format is that of ``torch.sparse_bsr_tensor``; csrc/cpu/families explains the kernels.
    """

    operator = torch.ops.fastcompress.linear_bsr.default
    bound = operator._op
    canonical_classes = (SparseCanonical,)
    dense = "nn.Linear"

    @classmethod
    def from_float(
        cls,
        module: nn.Linear,
        *,
        block_size: tuple[int, int] | None = None,
        activation: str = "none",
        orders: Orders | None = None,
    ) -> Self:
        """Take over the non-zero blocks of a float layer, masked or not; values keep the weight's dtype.

        Args:
            module: float32 or bfloat16; it is not changed.
            block_size: ``(outputs, inputs)``; by default the coarsest that fits the zeros.
            activation: function to fuse behind the layer.
            orders: ``(input_order, output_order)`` in which the weight is cut into blocks; by default those that
                `prune` stored with the mask, where they save blocks. The layer undoes them.

        Raises:
            TypeError: not an ``nn.Linear``, a subclass with a ``forward`` of its own, or another dtype.
            ValueError: the weight cannot be cut into such blocks, or holds NaN or infinity.
        """
        cls._accept(module)
        cls._refuse_misfit(module, block_size)
        checked = None if orders is None else cls._checked(orders, module.weight.shape)
        block = coarsest_block(module, checked) if block_size is None else block_size
        chosen = cls._orders_of(module, block, checked)
        c = sparse_canonical(cls.__name__, module, block, activation, chosen)
        return cls(c).reorder(*chosen).train(module.training)
