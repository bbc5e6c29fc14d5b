"""Codecs of the block-sparse layers: block-CSR in the file, every field and index checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from fastcompress.formats.fields import Fields
from fastcompress.formats.packed import ConvGeometry, LinearGeometry
from fastcompress.formats.quantized import W8A8Codec
from fastcompress.formats.reordered import ReorderedCodec
from fastcompress.nn import SparseConv2d, SparseLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.nn.blocks import misfit
from fastcompress.ops.block_csr import BlockCSR
from fastcompress.ops.canonical_sparse import SparseCanonical, SparseW8A8Canonical

__all__ = ["SparseConv2dCodec", "SparseLinearCodec", "SparseQuantConv2dCodec", "SparseQuantLinearCodec"]

#: What blocks may hold: name in the configuration → (dtype, its name in the tensor file).
_VALUES = {"int8": (torch.int8, "I8"), "float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16")}
_VALUE_NAMES = {dtype: name for name, (dtype, _) in _VALUES.items()}


@dataclass(frozen=True)
class _BlockCodec(ReorderedCodec):
    """Block-sparse weights: ``block_size``, how many ``blocks`` the file holds, and the dtype of their ``values``."""

    #: The dtypes of this layer's values, by name.
    value_names: ClassVar[tuple[str, ...]]

    block_size: tuple[int, ...]
    blocks: int
    values: str

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        stored = module.canonical().blocks
        return {
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
            **super().tensors(),
        }

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
