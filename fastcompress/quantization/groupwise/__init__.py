"""Weights of 4 and 8 bits in groups: round to nearest, HQQ, GPTQ and AWQ, for one weight or a whole model."""

from .awq import AwqScale, awq, awq_scale
from .checkpoint import LayerResult
from .gptq import gptq
from .grid import GroupGrid, GroupParams, Quantized
from .hqq import hqq
from .options import ALGORITHMS, GroupwiseOptions
from .rtn import rtn
from .statistics import InputStatistics, StatisticsCollector
from .stream import quantize_weights

__all__ = [
    "ALGORITHMS",
    "AwqScale",
    "GroupGrid",
    "GroupParams",
    "GroupwiseOptions",
    "InputStatistics",
    "LayerResult",
    "Quantized",
    "StatisticsCollector",
    "awq",
    "awq_scale",
    "gptq",
    "hqq",
    "quantize_weights",
    "rtn",
]
