"""Codec of the block-sparse int8 linear: block-CSR in the file, every index checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.formats.fields import Fields
from fastcompress.formats.quantized import DTYPES, QuantLinearCodec
from fastcompress.nn import SparseQuantLinear
from fastcompress.ops.block_csr import BlockCSR
from fastcompress.ops.canonical_sparse import SparseW8A8Canonical
from fastcompress.ops.packing import KERNEL_BLOCKS

__all__ = ["SparseQuantLinearCodec"]


@dataclass(frozen=True)
class SparseQuantLinearCodec(QuantLinearCodec):
    """`fastcompress.nn.SparseQuantLinear`; ``blocks`` is how many 16x4 blocks the file holds."""

    module_class = SparseQuantLinear  # type: ignore[assignment]  # a QuantLinear, and every codec names its own

    blocks: int

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        layer = cast(SparseQuantLinear, module)
        return {**super().describe(layer), "blocks": layer.canonical().blocks.nnz_blocks}

    @classmethod
    def parse(cls, fields: Fields) -> SparseQuantLinearCodec:
        blocks = fields.integer("blocks", 0)
        dense = QuantLinearCodec.parse(fields)
        height, width = KERNEL_BLOCKS[torch.int8][0]
        if dense.out_features % height or dense.in_features % width:
            raise fields.error(
                "out_features", f"{dense.out_features}x{dense.in_features} has no {height}x{width} blocks"
            )
        if blocks > dense.out_features // height * (dense.in_features // width):
            raise fields.error("blocks", f"{blocks} are more than the weight has")
        return cls(**vars(dense), blocks=blocks)

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        result = super().tensors()
        del result["weight"]
        return {
            "crow": ("I32", (self.out_features // KERNEL_BLOCKS[torch.int8][0][0] + 1,)),
            "col": ("I32", (self.blocks,)),
            "values": ("I8", (self.blocks, *KERNEL_BLOCKS[torch.int8][0])),
            **result,
        }

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        index = [tensors[name].clone() for name in ("crow", "col", "values")]
        blocks = BlockCSR(index[0], index[1], index[2], (self.out_features, self.in_features))
        canonical = SparseW8A8Canonical(blocks, **self.parameters(tensors))
        return SparseQuantLinear.from_canonical(canonical, dtype=DTYPES[self.dtype]).train(like.training)
