"""Quantization algorithms: pure torch, no kernels."""

from .bias_correction import ChannelMean, corrected_bias, expected_output_shift
from .equalize import absorb_high_bias, equalize, is_positively_homogeneous
from .fold import fold_batchnorm
from .observers import OBSERVERS, Observer, make_observer
from .qparams import choose_qparams, quantize_weight, weight_scales
from .smooth import ChannelAbsMax, smooth, smoothing_scales

__all__ = [
    "OBSERVERS",
    "ChannelAbsMax",
    "ChannelMean",
    "Observer",
    "absorb_high_bias",
    "choose_qparams",
    "corrected_bias",
    "equalize",
    "expected_output_shift",
    "fold_batchnorm",
    "is_positively_homogeneous",
    "make_observer",
    "quantize_weight",
    "smooth",
    "smoothing_scales",
    "weight_scales",
]
