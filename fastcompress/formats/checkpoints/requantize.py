"""Four-bit layers with float minima as layers with integer zero points, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles

__all__ = ["ExportLoss", "with_zero_points"]

_TOP = 15.0


@dataclass(frozen=True)
class ExportLoss:
    """How far a layer's weights are from what they were.

    Attributes:
        max_abs: largest difference of a weight.
        relative_squared: sum of the squared differences over the sum of the squared weights.
    """

    max_abs: float
    relative_squared: float


def _quantized(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, scales as stored, zero points and squared error of each group for these scales and the best of 16 zeros.

    Weights ``[out, groups, size]``, NaN where a group has fewer; scales ``[out, groups]``.
    """
    info = torch.finfo(dtype)
    stored = scale.clamp(min=info.tiny, max=info.max).to(dtype)
    wide = stored.to(torch.float32).unsqueeze(-1)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    low = weight.nan_to_num(nan=torch.inf).amin(-1)
    ideal = -low / wide.squeeze(-1)
    for shift in (0.0, 1.0):
        zero = (torch.floor(ideal) + shift).clamp(0.0, _TOP)
        values = (torch.round(weight / wide) + zero.unsqueeze(-1)).clamp(0.0, _TOP)
        error = ((values - zero.unsqueeze(-1)) * wide - weight).square().nansum(-1)
        if best is None:
            best = values, zero, error
            continue
        better = error < best[2]
        best = (
            torch.where(better.unsqueeze(-1), values, best[0]),
            torch.where(better, zero, best[1]),
            torch.where(better, error, best[2]),
        )
    assert best is not None
    return best[0], stored, best[1], best[2]


def with_zero_points(c: W4Canonical) -> tuple[W4Canonical, ExportLoss]:
    """The nearest layer whose groups have zero points 0 to 15 in place of minima.

    Two scales are tried for each group: its own, and the one that spreads 16 values from the least to the largest
    weight and zero. The one with the smaller squared error stays.

    Example:
        >>> layer, loss = with_zero_points(canonical)
        >>> loss.max_abs <= 0.5 * float(layer.weight_scale.max())
        True
    """
    out, size = c.weight_shape[0], c.group_size
    original = c.dequantize()
    padding = (0, c.groups * size - c.in_features)
    weight = torch.nn.functional.pad(original, padding, value=torch.nan).view(out, c.groups, size)
    dtype = c.weight_scale.dtype
    low = weight.nan_to_num(nan=0.0).amin(-1).clamp(max=0.0)
    high = weight.nan_to_num(nan=0.0).amax(-1).clamp(min=0.0)
    spread = _quantized(weight, (high - low) / _TOP, dtype)
    own = _quantized(weight, c.weight_scale.to(torch.float32).abs(), dtype)
    take = own[3] <= spread[3]
    values = torch.where(take.unsqueeze(-1), own[0], spread[0])
    scale, zero = torch.where(take, own[1], spread[1]), torch.where(take, own[2], spread[2])
    flat = values.reshape(out, -1)[:, : c.in_features].to(torch.uint8)
    result = replace(
        c,
        weight_packed=pack_nibbles(flat),
        weight_scale=scale,
        weight_zero_point=zero.to(torch.uint8),
        weight_min=None,
    )
    difference = result.dequantize() - original
    squares = float(original.square().sum())
    relative = float(difference.square().sum()) / squares if squares > 0.0 else 0.0
    return result, ExportLoss(float(difference.abs().max()), relative)
