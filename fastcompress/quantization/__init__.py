"""Quantization algorithms: pure torch, no kernels."""

from .bias_correction import ChannelMean, corrected_bias, expected_output_shift
from .equalize import absorb_high_bias, equalize, is_positively_homogeneous
from .fake_dynamic import DynamicInputFakeQuantize
from .fake_input import InputFakeQuantize
from .fake_layer import fake_quantized
from .fake_quantize import fake_quantize
from .fake_state import freeze_batchnorm, freeze_observers, set_fake_quant
from .fake_weight import WeightFakeQuantize
from .fake_weight_groups import GroupWeightFakeQuantize
from .fold import fold_batchnorm
from .observers import OBSERVERS, Observer, make_observer
from .prepare import prepare
from .qat_config import QATConfig
from .qparams import choose_qparams, quantize_weight, weight_scales
from .smooth import ChannelAbsMax, smooth, smoothing_scales

__all__ = [
    "OBSERVERS",
    "ChannelAbsMax",
    "ChannelMean",
    "DynamicInputFakeQuantize",
    "GroupWeightFakeQuantize",
    "InputFakeQuantize",
    "Observer",
    "QATConfig",
    "WeightFakeQuantize",
    "absorb_high_bias",
    "choose_qparams",
    "corrected_bias",
    "equalize",
    "expected_output_shift",
    "fake_quantize",
    "fake_quantized",
    "fold_batchnorm",
    "freeze_batchnorm",
    "freeze_observers",
    "is_positively_homogeneous",
    "make_observer",
    "prepare",
    "quantize_weight",
    "set_fake_quant",
    "smooth",
    "smoothing_scales",
    "weight_scales",
]
