"""``nn.Linear`` with block-sparse int8 weights and int8 activations."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops.canonical_sparse import SparseW8A8Canonical
from .block_sparse import BlockSparse, sparse_quantized
from .orders import Orders
from .quant_linear import QuantLinear
from .quantized import quantized_canonical

__all__ = ["SparseQuantLinear"]


class SparseQuantLinear(BlockSparse, QuantLinear):
    """Drop-in replacement of a pruned ``nn.Linear``: a `QuantLinear` that stores and runs only non-zero blocks.

    Blocks are 16x4 (outputs x inputs, the fastest), 4x4 or 1x4. Its ``state_dict`` holds block-CSR: ``crow`` int32
    ``[out/bh + 1]``, ``col`` int32 ``[blocks]``, ``values`` int8 ``[blocks, bh, bw]``. Time and memory grow with the
    number of blocks.

    Raises:
        ValueError: in ``from_float``, ``out_features`` or ``in_features`` is no multiple of the block.

    Example:
        >>> dense = torch.nn.Linear(64, 32)
        >>> with torch.no_grad():
        ...     _ = dense.weight[:, 4:].zero_()
        >>> layer = SparseQuantLinear.from_float(dense, input_mode="dynamic")
        >>> layer.density
        0.0625

    Source: the block format is that of ``torch.sparse_bsr_tensor``; csrc/cpu/families explains the kernels.
    """

    canonical_classes = (SparseW8A8Canonical,)
    dense = "QuantLinear"

    @staticmethod
    def values_dtype(module: nn.Module) -> torch.dtype:
        """Always int8."""
        return torch.int8

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
        block_size: tuple[int, int] = (16, 4),
        orders: Orders | None = None,
    ) -> Self:
        """Quantize a pruned float layer; `QuantLinear.from_float` explains the other arguments.

        Args:
            block_size: ``(outputs, inputs)``: (16, 4), (4, 4) or (1, 4).
            orders: ``(input_order, output_order)`` in which the weight is cut into blocks; by default those that
                `prune` stored with the mask, where they save blocks. The layer undoes them.

        Raises:
            TypeError, ValueError: as there, or the weight cannot be cut into such blocks.
        """
        cls._accept(module)
        cls._refuse_misfit(module, block_size)
        chosen = cls._orders_of(module, block_size, orders)
        dense = quantized_canonical(module, input_mode, input_scale, input_zero_point, activation, weight_scale)
        c: Any = sparse_quantized(cls.__name__, dense, block_size, chosen)
        return cls(c, dtype=module.weight.dtype).reorder(*chosen).train(module.training)
