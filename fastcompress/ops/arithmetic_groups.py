"""Arithmetic of weights in groups (docs/architecture.md §1) in plain torch: the kernels' IEEE float32 steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import quantize_rows
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical

__all__ = ["linear_sums", "quantize_groups"]

_TINY = 2.0**-100

#: The largest integer of 16-bit activations: its high and low bytes, and those of all below, are in [-128, 127].
_LARGEST = 127 * 257


def quantize_groups(input: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize each group of a row to 16 bits by its own largest magnitude.

    Args:
        input: float ``[..., K]``.
        group_size: neighbouring inputs that share a scale.

    Returns:
        Integers as float64 ``[..., K]``, scales float32 ``[..., groups]``. In a row with NaN or infinity all scales are
        NaN and all integers zero.
    """
    wide = input.to(torch.float32)
    inputs = wide.shape[-1]
    groups = -(-inputs // group_size)
    padded = torch.nn.functional.pad(wide, (0, groups * group_size - inputs)).unflatten(-1, (groups, group_size))
    broken = ~torch.isfinite(wide).all(-1, keepdim=True)
    largest = padded.abs().amax(-1)
    scale = torch.clamp(largest * torch.tensor(1.0 / _LARGEST, dtype=torch.float32), min=_TINY)
    inverse = 1.0 / scale
    q = torch.round(padded * inverse.unsqueeze(-1)).flatten(-2)[..., :inputs].to(torch.float64)
    return torch.where(broken, 0.0, q), torch.where(broken, torch.nan, scale)


def linear_sums(input: Tensor, c: W4Canonical | W8Canonical) -> Tensor:
    """What the epilogue of a layer with weights in groups gets, float32 ``[..., out]``: in the order of the kernels.

    Sums of a group are exact integers: of rows in 8 bits, or of the high and the low bytes of groups in 16 bits.
    """
    sixteen = c.input_mode == "dynamic_16bit"
    if sixteen:
        q, scales = quantize_groups(input, c.group_size)
        high = torch.floor((q + 128.0) / 256.0)
        parts = [high, q - 256.0 * high]
    else:
        rows, scales, _ = quantize_rows(input, symmetric=True)
        broken = torch.isnan(scales).unsqueeze(-1)
        parts = [torch.where(broken, 0.0, rows.to(torch.float64) - 128.0)]
    values = (c.values() if isinstance(c, W4Canonical) else c.weight).to(torch.float64)
    total = torch.zeros(*input.shape[:-1], c.weight_shape[0], dtype=torch.float32, device=input.device)
    minimum = c.weight_min if isinstance(c, W4Canonical) else None
    sums = [_group_sums(part, c) for part in parts]
    for g in range(c.groups if minimum is not None else 0):
        assert minimum is not None
        of_inputs = _joined([s[..., g : g + 1] for s in sums])
        total = total + (of_inputs * scales[..., g : g + 1] if sixteen else of_inputs) * minimum[:, g]
    for g in range(c.groups):
        inputs, zero = _inputs(c, g), _zero(c, g)
        exact = [
            p[..., inputs] @ values[:, inputs].t() - s[..., g : g + 1] * zero for p, s in zip(parts, sums, strict=True)
        ]
        value = _joined(exact) * c.weight_scale[:, g].to(torch.float32)
        total = total + (value * scales[..., g : g + 1] if sixteen else value)
    return total if sixteen else total * scales.unsqueeze(-1)


def _inputs(c: W4Canonical | W8Canonical, g: int) -> slice:
    return slice(g * c.group_size, min((g + 1) * c.group_size, c.in_features))


def _group_sums(rows: Tensor, c: W4Canonical | W8Canonical) -> Tensor:
    """Exact sums of each group, ``[..., groups]``."""
    return torch.stack([rows[..., _inputs(c, g)].sum(-1) for g in range(c.groups)], -1)


def _zero(c: W4Canonical | W8Canonical, g: int) -> Tensor | float:
    """What is taken off the values of a group."""
    if isinstance(c, W8Canonical) or c.weight_min is not None:
        return 0.0
    return 8.0 if c.weight_zero_point is None else c.weight_zero_point[:, g].to(torch.float64)


def _joined(sums: list[Tensor]) -> Tensor:
    """Exact sums of rows, or of high and low bytes, as float32."""
    value = sums[0].to(torch.float32)
    return value if len(sums) == 1 else value * 256.0 + sums[1].to(torch.float32)
