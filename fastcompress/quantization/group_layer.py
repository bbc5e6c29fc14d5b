"""The layer with weights in groups that takes a linear layer's place."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fastcompress.config import QuantConfig
from fastcompress.nn import GroupQuantLinear
from fastcompress.ops import W4Canonical, W8Canonical

__all__ = ["grouped_layer", "scale_dtype"]

_SCALES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def scale_dtype(config: QuantConfig) -> torch.dtype:
    """What scales are stored as."""
    return _SCALES[config.scale_dtype]


def grouped_layer(
    layer: nn.Linear, config: QuantConfig, activation: str, weights: W4Canonical | W8Canonical | None
) -> GroupQuantLinear:
    """The layer that `config` makes of `layer`.

    Args:
        activation: fused behind it.
        weights: what an algorithm found for it; None rounds each to the nearest.

    Raises:
        ValueError: the weights cannot be quantized.
    """
    kind, dtype = config.kind, layer.weight.dtype
    if weights is None:
        made = GroupQuantLinear.from_float(
            layer,
            weight_bits=kind.weight_bits,
            group_size=config.inputs_per_group,
            symmetric=config.symmetric_weights,
            scale_dtype=scale_dtype(config),
            input_mode=kind.input_mode,
            activation=activation,
        )
    else:
        c = replace(weights, activation=activation, input_mode=kind.input_mode)
        made = GroupQuantLinear.from_canonical(c, dtype=dtype)
    return made.to(dtype).eval()
