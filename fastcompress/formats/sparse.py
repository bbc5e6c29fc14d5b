"""Codecs of the block-sparse layers: block-CSR in the file, every field and index checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from fastcompress.formats.fields import Fields
from fastcompress.formats.packed import ConvGeometry, LinearGeometry, PackedCodec
from fastcompress.formats.quantized import W8A8Codec
from fastcompress.nn import BlockSparse, SparseConv2d, SparseLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.nn.blocks import misfit
from fastcompress.nn.orders import checked_order
from fastcompress.ops.block_csr import BlockCSR
from fastcompress.ops.canonical_sparse import SparseCanonical, SparseW8A8Canonical

__all__ = ["SparseConv2dCodec", "SparseLinearCodec", "SparseQuantConv2dCodec", "SparseQuantLinearCodec"]

#: What blocks may hold: name in the configuration → (dtype, its name in the tensor file).
_VALUES = {"int8": (torch.int8, "I8"), "float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16")}
#: (input order, output order) → the configuration's name for it.
_REORDERED = {(False, False): "", (True, False): "inputs", (False, True): "outputs", (True, True): "both"}

_VALUE_NAMES = {dtype: name for name, (dtype, _) in _VALUES.items()}


@dataclass(frozen=True)
class _BlockCodec(PackedCodec):
    """Block-sparse weights: ``block_size``, how many ``blocks`` the file holds, and the dtype of their ``values``.

    Where blocks are stored in other orders of the channels, ``reordered`` says of which and the file holds the orders.
    """

    #: The dtypes of this layer's values, by name.
    value_names: ClassVar[tuple[str, ...]]

    block_size: tuple[int, ...]
    blocks: int
    values: str
    reordered: str

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        stored = module.canonical().blocks
        reordered = {"reordered": _REORDERED[module.input_order is not None, module.output_order is not None]}
        return {
            **(reordered if module.reordered else {}),
            **super()._describe(module),
            "block_size": list(stored.block_size),
            "blocks": stored.nnz_blocks,
            "values": _VALUE_NAMES[stored.dtype],
        }

    @classmethod
    def _parse(cls, fields: Fields) -> dict[str, Any]:
        return {
            **super()._parse(fields),
            "block_size": fields.integers("block_size", 2),
            "blocks": fields.integer("blocks", 0),
            "values": fields.string("values", cls.value_names),
            "reordered": next((name for name in _REORDERED.values() if name and fields.takes("reordered", name)), ""),
        }

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        codec = cast(Self, super().parse(fields))
        groups = getattr(codec, "groups", 1)
        problem = misfit(codec.weight_shape(), groups, _VALUES[codec.values][0], cast(Any, codec.block_size))
        if problem is not None:
            raise fields.error("block_size", problem)
        most = codec._elems() // (codec.block_size[0] * codec.block_size[1])
        if codec.blocks > most:
            raise fields.error("blocks", f"{codec.blocks} are more than the {most} that the weight has")
        return codec

    def _elems(self) -> int:
        return math.prod(self.weight_shape())

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        rows = self.weight_shape()[0] // self.block_size[0]
        return {
            "crow": ("I32", (rows + 1,)),
            "col": ("I32", (self.blocks,)),
            "values": (_VALUES[self.values][1], (self.blocks, *self.block_size)),
            **{name: ("I64", (channels,)) for name, channels in self._orders().items()},
            **super().tensors(),
        }

    def _orders(self) -> dict[str, int]:
        """Name of each order in the file → its number of channels."""
        shape = self.weight_shape()
        return {
            **({"input_order": shape[1]} if self.reordered in ("inputs", "both") else {}),
            **({"output_order": shape[0]} if self.reordered in ("outputs", "both") else {}),
        }

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        orders = {
            name: checked_order(f"`{name}`", tensors[name], channels) for name, channels in self._orders().items()
        }
        layer = cast(BlockSparse, super().build(tensors, like))  # type: ignore[safe-super]
        return layer.reorder(orders.get("input_order"), orders.get("output_order"))

    def parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        shape = self.weight_shape()
        crow, col, values = (tensors[name].clone() for name in ("crow", "col", "values"))
        return {
            **super().parameters(tensors),
            "blocks": BlockCSR(crow, col, values, (shape[0], self._elems() // shape[0])),
            "kernel_size": (shape[2], shape[3]) if len(shape) == 4 else None,
        }


@dataclass(frozen=True)
class _FloatBlocks(_BlockCodec):
    value_names = ("float32", "bfloat16")

    def canonical(self, tensors: Mapping[str, Tensor]) -> SparseCanonical:
        return SparseCanonical(**self.parameters(tensors))


@dataclass(frozen=True)
class _Int8Blocks(_BlockCodec, W8A8Codec):
    value_names = ("int8",)

    def canonical(self, tensors: Mapping[str, Tensor]) -> SparseW8A8Canonical:
        return SparseW8A8Canonical(**self.parameters(tensors))


@dataclass(frozen=True)
class SparseLinearCodec(_FloatBlocks, LinearGeometry):
    """`fastcompress.nn.SparseLinear`."""

    module_class = SparseLinear


@dataclass(frozen=True)
class SparseConv2dCodec(_FloatBlocks, ConvGeometry):
    """`fastcompress.nn.SparseConv2d`."""

    module_class = SparseConv2d


@dataclass(frozen=True)
class SparseQuantLinearCodec(_Int8Blocks, LinearGeometry):
    """`fastcompress.nn.SparseQuantLinear`."""

    module_class = SparseQuantLinear


@dataclass(frozen=True)
class SparseQuantConv2dCodec(_Int8Blocks, ConvGeometry):
    """`fastcompress.nn.SparseQuantConv2d`."""

    module_class = SparseQuantConv2d
