"""Weights of 4 and 8 bits in groups: round to nearest, HQQ, GPTQ and AWQ, for one weight or a whole model."""

from .awq import AwqScale, awq, awq_scale
from .gptq import gptq
from .grid import GroupGrid, GroupParams, Quantized
from .hqq import hqq
from .rtn import rtn
from .statistics import InputStatistics, StatisticsCollector

__all__ = [
    "AwqScale",
    "GroupGrid",
    "GroupParams",
    "InputStatistics",
    "Quantized",
    "StatisticsCollector",
    "awq",
    "awq_scale",
    "gptq",
    "hqq",
    "rtn",
]
