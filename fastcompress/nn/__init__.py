"""Layers that run on fastcompress' operators and drop into any torch model."""

from .base import QuantizedLayer
from .lazy_weight import LazyWeight
from .quant_conv2d import QuantConv2d
from .quant_linear import QuantLinear
from .sparse_quant_linear import SparseQuantLinear

__all__ = ["LazyWeight", "QuantConv2d", "QuantLinear", "QuantizedLayer", "SparseQuantLinear"]
