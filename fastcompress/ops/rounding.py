"""Weights in groups, each rounded to the nearest of its group's values: four or eight bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .canonical_w4 import W4Canonical, pack_nibbles
from .canonical_w8 import W8Canonical
from .checks import check_weight

__all__ = ["SCALE_DTYPES", "round_to_nearest"]

#: What scales of groups may be stored as.
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_TINY = 2.0**-100


def round_to_nearest(
    weight: Tensor,
    group_size: int | None = None,
    *,
    bits: int = 4,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.bfloat16,
    bias: Tensor | None = None,
    input_mode: str | None = None,
    activation: str = "none",
) -> W4Canonical | W8Canonical:
    """Quantize a float weight to four or eight bits, each value to the nearest.

    Args:
        weight: float ``[out, in]``.
        group_size: inputs that share a scale, a multiple of 8; None, or more than there are, means all.
        bits: 4 or 8.
        symmetric: values around zero: -8 to 7, or -127 to 127; else (four bits only) 0 to 15 with a zero point for each
            group.
        scale_dtype: float32, bfloat16 or float16; scales are rounded to it before the weights are.
        bias: float ``[out]`` of the layer, or None.
        input_mode: see `W4Canonical`; by default ``"dynamic_symmetric"`` for four bits, ``"dynamic_16bit"`` for eight.
        activation: a key of ``ACTIVATIONS``.

    Returns:
        The layer: `W4Canonical` or `W8Canonical`.

    Raises:
        TypeError: not floating point, another dtype of scales, or groups of no whole number.
        ValueError: not ``[out, in]``, NaN or infinity, or an argument out of range.

    Source: Frantar et al. 2023, "GPTQ", section 2 (round-to-nearest, RTN; arXiv 2210.17323).
    """
    groups = _grouped(weight, group_size, bits, symmetric, scale_dtype)
    out, inputs = weight.shape
    size = groups.shape[2]
    own = None if bias is None else bias.detach().to(torch.float32).clone()
    if bits == 8:
        scale = _storable(groups.abs().amax(-1) / 127.0, scale_dtype)
        values = torch.round(groups / scale.unsqueeze(-1)).clamp(-127, 127)
        flat = values.reshape(out, -1)[:, :inputs].to(torch.int8)
        return W8Canonical(flat, scale.to(scale_dtype), own, size, input_mode or "dynamic_16bit", activation)
    zero_point = None
    if symmetric:
        # The largest magnitude becomes 7.5 steps: both 7 and 8 of them are half a step from it.
        scale = _storable(groups.abs().amax(-1) / 7.5, scale_dtype)
        zero = torch.full_like(scale, 8.0)
    else:
        low, high = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
        scale = _storable((high - low) / 15.0, scale_dtype)
        zero = torch.round(-low / scale).clamp(0, 15)
        zero_point = zero.to(torch.uint8)
    values = (torch.round(groups / scale.unsqueeze(-1)) + zero.unsqueeze(-1)).clamp(0, 15)
    words = pack_nibbles(values.reshape(out, -1)[:, :inputs].to(torch.uint8))
    mode = input_mode or "dynamic_symmetric"
    return W4Canonical(words, scale.to(scale_dtype), own, inputs, size, mode, zero_point, None, activation)


def _grouped(weight: Tensor, group_size: int | None, bits: int, symmetric: bool, scale_dtype: torch.dtype) -> Tensor:
    """The weight as float32 ``[out, groups, group size]``, filled up with zeros, after all checks."""
    weight = check_weight("round_to_nearest", weight).detach().to(torch.float32)
    if weight.dim() != 2:
        raise ValueError(f"round_to_nearest: `weight` must be [out, in], got shape {list(weight.shape)}")
    if scale_dtype not in SCALE_DTYPES:
        raise TypeError(f"round_to_nearest: `scale_dtype` must be one of {SCALE_DTYPES}, got {scale_dtype}")
    if bits not in (4, 8):
        raise ValueError(f"round_to_nearest: `bits` (weight_bits of a layer) must be 4 or 8, got {bits!r}")
    if bits == 8 and not symmetric:
        raise ValueError("round_to_nearest: `symmetric` must be True for 8 bits; zero points are for 4 bits")
    if group_size is not None and type(group_size) is not int:
        raise TypeError(f"round_to_nearest: `group_size` must be an integer or None, got {group_size!r}")
    out, inputs = weight.shape
    size = inputs if group_size is None else min(group_size, inputs)
    if size < 1 or (size % 8 and size != inputs):
        raise ValueError(
            f"round_to_nearest: `group_size` must be a multiple of 8, or None for all {inputs} inputs, got {group_size}"
        )
    groups = -(-inputs // size)
    return torch.nn.functional.pad(weight, (0, groups * size - inputs)).view(out, groups, size)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they will be stored: in range of the dtype, normal, positive."""
    info = torch.finfo(dtype)
    return scale.clamp(min=max(_TINY, info.smallest_normal), max=info.max).to(dtype).to(torch.float32)
