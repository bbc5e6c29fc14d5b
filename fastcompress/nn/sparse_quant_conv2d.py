"""``nn.Conv2d`` with block-sparse int8 weights and int8 activations."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from ..ops.canonical_sparse import SparseW8A8Canonical
from .block_sparse import BlockSparse, sparse_quantized
from .geometry import Padding
from .orders import Orders
from .quant_conv2d import QuantConv2d
from .quantized import quantized_canonical

__all__ = ["SparseQuantConv2d"]


class SparseQuantConv2d(BlockSparse, QuantConv2d):
    """Drop-in replacement of a pruned ``nn.Conv2d``: a `QuantConv2d` that stores and runs only non-zero blocks.

    Blocks are 16x4 (outputs x input channels at one tap, the fastest), 4x4 or 1x4; one group. Its ``state_dict`` holds
    the block-CSR of the matrix ``[out, kh*kw*in]``, see `SparseQuantLinear`.

    Raises:
        ValueError: in ``from_float``, groups, or channels that are no multiple of the block.

    Example:
        >>> dense = torch.nn.Conv2d(16, 32, 3)
        >>> with torch.no_grad():
        ...     _ = dense.weight[:, 4:].zero_()
        >>> SparseQuantConv2d.from_float(dense, input_scale=0.02).density
        0.25

    Source: the block format is that of ``torch.sparse_bsr_tensor``; csrc/cpu/families explains the kernels.
    """

    _channel_dim = -3
    canonical_classes = (SparseW8A8Canonical,)
    dense = "QuantConv2d"

    @staticmethod
    def values_dtype(module: nn.Module) -> torch.dtype:
        """Always int8."""
        return torch.int8

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
        weight_bits: int = 8,
        padding: Padding | None = None,
        same_padding: bool = False,
        block_size: tuple[int, int] = (16, 4),
        orders: Orders | None = None,
    ) -> Self:
        """Quantize a pruned float layer; `QuantConv2d.from_float` explains the other arguments.

        Args:
            weight_bits: 8, blocks hold nothing else.
            block_size: ``(outputs, inputs)``: (16, 4), (4, 4) or (1, 4).
            orders: ``(input_order, output_order)`` in which the weight is cut into blocks; by default those that
                `prune` stored with the mask, where they save blocks. The layer undoes them.

        Raises:
            TypeError, ValueError: as there, or the weight cannot be cut into such blocks.
        """
        if weight_bits != 8:
            raise ValueError(f"{cls.__name__}.from_float: `weight_bits` must be 8 for blocks, got {weight_bits!r}")
        cls._accept(module, padding)
        cls._refuse_misfit(module, block_size)
        chosen = cls._orders_of(module, block_size, orders)
        dense = quantized_canonical(module, input_mode, input_scale, input_zero_point, activation, weight_scale)
        c = sparse_quantized(cls.__name__, dense, block_size, chosen)
        return cls._like(module, c, padding, same_padding).reorder(*chosen)
