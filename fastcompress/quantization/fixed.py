"""Scales that are settled before a layer becomes int8: those that quantization-aware training simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from .fake_input import InputFakeQuantize
from .fake_layer import INPUT_NAME, float_weight, weight_quantizer

__all__ = ["FixedScales"]


@dataclass(frozen=True, eq=False)
class FixedScales:
    """What one int8 layer is made from.

    Attributes:
        weight: float32, what is rounded: with a mask's zeros, and with the BatchNorm folded in.
        weight_scale: float32 ``[out]``.
        input_scale, input_zero_point: of the u8 activations.
        norm: the BatchNorm that is folded in, or None.
        problem: why there is no int8 layer after all: its inputs were never seen; or None.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: float
    input_zero_point: int
    norm: nn.Module | None
    problem: str | None = None

    @classmethod
    def of(cls, layer: nn.Module) -> FixedScales:
        """The scales that the fake quantization on ``layer`` simulates now (in state off: would, if it were on)."""
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        quantizer.refresh()
        weight, weight_scale = quantizer.quantized_from(float_weight(layer))
        input = cast(InputFakeQuantize, getattr(layer, INPUT_NAME))
        input.refresh()
        scale, zero_point = input.qparams()
        problem = None
        if not input.observed:
            problem = "its inputs were never seen in training"
        elif not input.known:
            problem = "its learned scales never started: it was observed, but not trained, with fake quantization"
        elif input.step is None and input.is_degenerate:
            problem = "its inputs held nothing but 0 (or NaN and infinity) in training, so they have no range"
        return cls(weight, weight_scale, float(scale), int(zero_point), quantizer.norm, problem)
