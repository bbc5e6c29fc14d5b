"""Rotary frequencies that a GGUF file divides by factors, as the settings that they were computed from.

llama.cpp stores the result of Llama 3's rule (``rope_freqs.weight``, one factor for each pair of a head), Hugging Face
the rule: frequencies whose wave is longer than the training context are divided by a factor, short waves are left, and
between the two the change is smooth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["llama3_scaling"]

_LOW, _HIGH = 1.0, 4.0
#: Contexts of the networks that were extended by this rule: Llama 3 (all sizes).
_CONTEXTS = (8192,)
#: Converters compute in float32 or float64, and store float32.
_RELATIVE_TOLERANCE = 1e-4


def _factors(head: int, theta: float, factor: float, context: int) -> Tensor:
    """float64 ``[head / 2]``."""
    frequency = theta ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    waves = context * frequency / (2.0 * math.pi)  # how many fit into the context
    smooth = ((waves - _LOW) / (_HIGH - _LOW)).clamp(0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def llama3_scaling(factors: Tensor, theta: float) -> dict[str, Any]:
    """The ``rope_scaling`` of ``config.json`` that gives these factors, float32 ``[head / 2]``.

    Raises:
        ValueError: they are not of Llama 3's rule.

    Source: Dubey et al. 2024, "The Llama 3 Herd of Models" (arXiv 2407.21783); the rule is in transformers'
    ``rope_type="llama3"``.
    """
    wide = factors.to(torch.float64)
    factor = float(wide.max())
    if not math.isfinite(factor) or factor < 1.0 or not bool(torch.isfinite(wide).all()):
        raise ValueError("rotary factors must be finite and at least 1")
    for context in _CONTEXTS:
        expected = _factors(2 * wide.numel(), theta, factor, context)
        if bool(((wide - expected).abs() <= _RELATIVE_TOLERANCE * expected).all()):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": context,
            }
    raise ValueError("these rotary factors are not Llama 3's, others are not supported")
