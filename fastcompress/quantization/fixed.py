"""Scales that are settled before a layer is quantized: those that quantization-aware training simulated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcompress.ops import W4Canonical, W8Canonical
from fastcompress.ops.checks import check_weight
from fastcompress.ops.rounding import from_groups, to_groups

from .fake_input import InputFakeQuantize
from .fake_layer import float_weight, input_quantizer, weight_quantizer
from .fake_weight_groups import GroupWeightFakeQuantize
from .groupwise.grid import GroupGrid, GroupParams, Quantized, rounded

__all__ = ["FixedScales", "scheme_of"]


def scheme_of(layer: nn.Module) -> str:
    """The scheme that the fake quantization on ``layer`` simulates."""
    if not isinstance(weight_quantizer(layer), GroupWeightFakeQuantize):
        return "W8A8"
    return "W4A16" if input_quantizer(layer) is None else "W4A8"


@dataclass(frozen=True, eq=False)
class FixedScales:
    """What one quantized layer is made from.

    Attributes:
        scheme: ``"W8A8"``, ``"W4A8"`` or ``"W4A16"``.
        weight: float32, what is rounded: with a mask's zeros, and with the BatchNorm folded in.
        weight_scale: float32 ``[out]``, or ``[out, groups]`` with a grid.
        norm: the BatchNorm that is folded in, or None.
        input_scale, input_zero_point: of the u8 activations of W8A8.
        grid: what weights in groups are rounded to; None for W8A8.
        problem: why there is no quantized layer after all: its inputs were never seen; or None.
    """

    scheme: str
    weight: Tensor
    weight_scale: Tensor
    norm: nn.Module | None
    input_scale: float = 1.0
    input_zero_point: int = 0
    grid: GroupGrid | None = None
    problem: str | None = None

    @classmethod
    def of(cls, layer: nn.Module) -> FixedScales:
        """The scales that the fake quantization on ``layer`` simulates now (in state off: would, if it were on)."""
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        quantizer.refresh()
        weight, weight_scale = quantizer.quantized_from(float_weight(layer))
        input = input_quantizer(layer)
        if isinstance(quantizer, GroupWeightFakeQuantize):
            return cls(scheme_of(layer), weight, weight_scale, quantizer.norm, grid=quantizer.grid)
        assert isinstance(input, InputFakeQuantize)
        input.refresh()
        scale, zero_point = input.qparams()
        problem = None
        if not input.observed:
            problem = "its inputs were never seen in training"
        elif not input.known:
            problem = "its learned scales never started: it was observed, but not trained, with fake quantization"
        elif input.step is None and input.is_degenerate:
            problem = "its inputs held nothing but 0 (or NaN and infinity) in training, so they have no range"
        return cls("W8A8", weight, weight_scale, quantizer.norm, float(scale), int(zero_point), problem=problem)

    def in_groups(self, bias: Tensor | None) -> W4Canonical | W8Canonical:
        """The layer with weights in groups, and with ``bias``.

        Raises:
            ValueError: the weight holds NaN or infinity.
        """
        assert self.grid is not None
        weight = check_weight("convert", self.weight)
        inputs = weight.shape[1]
        params = GroupParams(self.weight_scale, torch.full_like(self.weight_scale, self.grid.middle))
        groups = to_groups(weight.contiguous(), self.grid.size(inputs))
        values = from_groups(rounded(groups, params, self.grid), inputs)
        return Quantized(values, params, self.grid).canonical(bias)
