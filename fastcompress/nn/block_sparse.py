"""What block-sparse layers share, int8 or float: blocks and density, and how a float module becomes one."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..ops import packing
from ..ops.canonical import W8A8Canonical
from ..ops.canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .blocks import block_name, cut, fewest_blocks, forms, misfit
from .orders import NATURAL, Orders, mask_orders, permuted, reordered_name
from .reordered import ReorderedLayer

__all__ = ["BlockSparse", "coarsest_block", "sparse_canonical", "sparse_quantized"]


class BlockSparse(ReorderedLayer):
    """Base of the layers that store and run only the non-zero blocks of their weight.

    Attributes:
        block_size: ``(outputs, inputs)`` of one block.
    """

    block_size: tuple[int, int]

    _ordered_entry = "values"

    #: The layer to use where the weight has no fitting blocks, for messages.
    dense: ClassVar[str]

    def _adopt(self, c: Any) -> None:
        super()._adopt(c)
        self.block_size = c.blocks.block_size

    @staticmethod
    def values_dtype(module: nn.Module) -> torch.dtype:
        """The dtype of the values that a layer made from `module` stores."""
        return cast(torch.Tensor, module.weight).dtype

    @classmethod
    def problem(cls, module: nn.Module, block_size: tuple[int, int] | None = None) -> str | None:
        """Why the weight of `module` cannot be cut into `block_size` (None: into any that has a kernel), or None."""
        weight = cast(torch.Tensor, module.weight)
        return misfit(weight.shape, getattr(module, "groups", 1), cls.values_dtype(module), block_size)

    @classmethod
    def _refuse_misfit(cls, module: nn.Module, block_size: tuple[int, int] | None) -> None:
        problem = cls.problem(module, block_size)
        if problem is not None:
            kind = TypeError if cls.values_dtype(module) not in packing.KERNEL_BLOCKS else ValueError
            raise kind(f"{cls.__name__}.from_float: {problem}; use {cls.dense}")

    @classmethod
    def _orders_of(cls, module: nn.Module, block_size: tuple[int, int], orders: Orders | None) -> Orders:
        """The given orders, checked; by default those of the mask on `module`, as far as they save blocks."""
        weight = cast(Tensor, module.weight)
        if orders is None:
            found = mask_orders(module)
            return (
                NATURAL
                if not any(order is not None for order in found)
                else fewest_blocks(weight, block_size, found)[1]
            )
        return cls._checked(orders, weight.shape)

    def canonical(self) -> SparseW8A8Canonical | SparseCanonical:
        """The portable tensors behind this layer, bit for bit (without native kernels, all-zero blocks are dropped)."""
        c = packing.unpack(self.packed)
        assert isinstance(c, SparseW8A8Canonical | SparseCanonical)
        return c

    @property
    def density(self) -> float:
        """Stored blocks over all blocks, from 0 to 1."""
        header = packing.info(self.packed)
        if "blocks" not in header:
            return self.canonical().blocks.density
        return float(header["blocks"]) * self.block_size[0] * self.block_size[1] / (header["n"] * header["k"])

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        text = f"{super().extra_repr()}, block_size={block_name(self.block_size)}, density={self.density:.3g}"
        return f"{text}, reordered={reordered_name(self.orders)!r}" if self.reordered else text


def sparse_quantized(
    layer: str, c: W8A8Canonical, block_size: tuple[int, int], orders: Orders = NATURAL
) -> SparseW8A8Canonical:
    """The block-sparse form, in the given orders, of a dense int8 layer without groups; `layer` is for messages."""
    return SparseW8A8Canonical(
        cut(layer, permuted(c.weight, *orders), block_size),
        permuted(c.weight_scale, None, orders[1]),
        None if c.bias is None else permuted(c.bias, None, orders[1]),
        c.input_mode,
        c.input_scale,
        c.input_zero_point,
        c.activation,
        _kernel_size(c.weight_shape),
    )


def coarsest_block(module: nn.Module, orders: Orders | None) -> tuple[int, int]:
    """The most promising block of a float layer, in the given orders or in those of its mask."""
    weight = cast(Tensor, module.weight).detach()
    if orders is not None:
        return forms(permuted(weight, *orders), weight.dtype)[0].block
    return forms(weight, weight.dtype, orders=mask_orders(module))[0].block


def sparse_canonical(
    layer: str, module: Any, block_size: tuple[int, int], activation: str, orders: Orders = NATURAL
) -> SparseCanonical:
    """The block-sparse form of a float linear or convolution whose blocks fit; see `SparseLinear.from_float`."""
    weight = permuted(module.weight.detach(), *orders)
    bias = None if module.bias is None else module.bias.detach().to(torch.float32).clone()
    bias = None if bias is None else permuted(bias, None, orders[1])
    return SparseCanonical(cut(layer, weight, block_size), bias, activation, _kernel_size(weight.shape))


def _kernel_size(shape: Any) -> tuple[int, int] | None:
    return (shape[2], shape[3]) if len(shape) == 4 else None
