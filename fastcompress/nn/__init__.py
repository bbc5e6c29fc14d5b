"""Layers that run on fastcompress' operators and drop into any torch model."""

from .base import PackedLayer
from .block_sparse import BlockSparse
from .group_quant_linear import GroupQuantized, GroupQuantLinear
from .lazy_weight import LazyWeight
from .quant_conv2d import QuantConv2d
from .quant_embedding import QuantEmbedding
from .quant_linear import QuantLinear
from .quantized import QuantizedLayer
from .sparse_conv2d import SparseConv2d
from .sparse_linear import SparseLinear
from .sparse_quant_conv2d import SparseQuantConv2d
from .sparse_quant_linear import SparseQuantLinear

__all__ = [
    "BlockSparse",
    "GroupQuantLinear",
    "GroupQuantized",
    "LazyWeight",
    "PackedLayer",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLinear",
    "QuantizedLayer",
    "SparseConv2d",
    "SparseLinear",
    "SparseQuantConv2d",
    "SparseQuantLinear",
]
