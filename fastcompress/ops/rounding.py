"""Weights in groups, each rounded to the nearest of its group's values: four or eight bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .canonical_w4 import W4Canonical, pack_nibbles
from .canonical_w8 import W8Canonical
from .checks import check_weight

__all__ = ["SCALE_DTYPES", "asymmetric_scales", "from_groups", "round_to_nearest", "storable", "to_groups"]

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
    inputs, size = weight.shape[1], groups.shape[2]
    own = None if bias is None else bias.detach().to(torch.float32).clone()
    if bits == 8:
        scale = storable(groups.abs().amax(-1) / 127.0, scale_dtype)
        values = torch.round(groups / scale.unsqueeze(-1)).clamp(-127, 127)
        flat = from_groups(values, inputs).to(torch.int8)
        return W8Canonical(flat, scale.to(scale_dtype), own, size, input_mode or "dynamic_16bit", activation)
    zero_point = None
    if symmetric:
        # The largest magnitude becomes 7.5 steps: both 7 and 8 of them are half a step from it.
        scale = storable(groups.abs().amax(-1) / 7.5, scale_dtype)
        zero = torch.full_like(scale, 8.0)
    else:
        scale, zero = asymmetric_scales(groups.amin(-1), groups.amax(-1), scale_dtype)
        zero_point = zero.to(torch.uint8)
    values = (torch.round(groups / scale.unsqueeze(-1)) + zero.unsqueeze(-1)).clamp(0, 15)
    words = pack_nibbles(from_groups(values, inputs).to(torch.uint8))
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
    inputs = weight.shape[1]
    size = inputs if group_size is None else min(group_size, inputs)
    if size < 1 or (size % 8 and size != inputs):
        raise ValueError(
            f"round_to_nearest: `group_size` must be a multiple of 8, or None for all {inputs} inputs, got {group_size}"
        )
    return to_groups(weight, size)


def to_groups(matrix: Tensor, size: int) -> Tensor:
    """``[out, in]`` as ``[out, groups, size]``; the last group is filled up with zeros."""
    out, inputs = matrix.shape
    return torch.nn.functional.pad(matrix, (0, -inputs % size)).view(out, -1, size)


def from_groups(groups: Tensor, inputs: int) -> Tensor:
    """``[out, in]`` from what `to_groups` made."""
    return groups.flatten(1)[:, :inputs]


def storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they will be stored, as float32: in range of the dtype, normal, not zero; the sign stays."""
    info = torch.finfo(dtype)
    size = scale.abs().clamp(min=max(_TINY, info.smallest_normal), max=info.max)
    return torch.where(scale < 0, -size, size).to(dtype).to(torch.float32)


def asymmetric_scales(low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales and zero points 0 to 15, float32 ``[out, groups]``, of groups that reach from `low` to `high`."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = storable((high - low) / 15.0, dtype)
    return scale, torch.round(-low / scale).clamp(0, 15)
