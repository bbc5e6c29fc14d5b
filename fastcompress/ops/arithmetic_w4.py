"""Four-bit arithmetic of docs/architecture.md §1 in plain torch: the same IEEE float32 steps as the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import quantize_rows
from .canonical_w4 import W4Canonical, pack_nibbles
from .canonical_w8 import W8Canonical
from .checks import check_weight

__all__ = ["linear_sums", "round_to_nearest", "weight_only_sums"]

_TINY = 2.0**-100
_SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def weight_only_sums(input: Tensor, c: W4Canonical | W8Canonical) -> Tensor:
    """What the epilogue of a layer with float activations gets, float32 ``[..., out]``: float64 sums, rounded.

    The kernels sum in float32 and agree up to rounding. A row that holds NaN or infinity gives NaN or infinity.
    """
    return (input.to(torch.float64) @ c.dequantize(torch.float64).t()).to(torch.float32)


def linear_sums(input: Tensor, c: W4Canonical | W8Canonical) -> Tensor:
    """What the epilogue of a layer with weights in groups gets, float32 ``[..., out]``.

    W4A8: group by group, in the order of the kernels; rows are quantized to int8 by their own largest magnitude, the
    sums of a group are exact integers. Float activations: `weight_only_sums`.
    """
    if isinstance(c, W8Canonical) or c.input_mode == "float":
        return weight_only_sums(input, c)
    q, row_scale, _ = quantize_rows(input, symmetric=True)
    a = q.to(torch.float64) - 128.0
    a = torch.where(torch.isnan(row_scale).unsqueeze(-1), 0.0, a) if bool(torch.isnan(row_scale).any()) else a
    values, total = c.values().to(torch.float64), torch.zeros(*input.shape[:-1], c.weight_shape[0])
    for g in range(c.groups):
        inputs = slice(g * c.group_size, min((g + 1) * c.group_size, c.in_features))
        part = a[..., inputs]
        sums, scale = part.sum(-1, keepdim=True), c.weight_scale[:, g].to(torch.float32)
        exact = part @ values[:, inputs].t()
        if c.weight_zero_point is not None:
            exact = exact - sums * c.weight_zero_point[:, g].to(torch.float64)
        elif c.weight_min is None:
            exact = exact - 8.0 * sums
        total = total + exact.to(torch.float32) * scale
        if c.weight_min is not None:
            total = total + sums.to(torch.float32) * c.weight_min[:, g]
    return total * row_scale.unsqueeze(-1)


def round_to_nearest(
    weight: Tensor,
    group_size: int,
    *,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.bfloat16,
    bias: Tensor | None = None,
    input_mode: str = "dynamic_symmetric",
    activation: str = "none",
) -> W4Canonical:
    """Quantize a float weight to four bits, each value to the nearest.

    Args:
        weight: float ``[out, in]``.
        group_size: inputs that share a scale; more than there are means all.
        symmetric: values -8 to 7 around zero; else 0 to 15 with a zero point for each group.
        scale_dtype: of the scales, which are rounded to it before the weights are.

    Raises:
        TypeError: not floating point. ValueError: not ``[out, in]``, NaN or infinity, or a bad group size.

    Source: Frantar et al. 2023, "GPTQ", section 2 (round-to-nearest, RTN).
    """
    weight = check_weight("round_to_nearest", weight).detach().to(torch.float32)
    if weight.dim() != 2:
        raise ValueError(f"round_to_nearest: `weight` must be [out, in], got shape {list(weight.shape)}")
    if scale_dtype not in _SCALE_DTYPES:
        raise TypeError(f"round_to_nearest: `scale_dtype` must be one of {_SCALE_DTYPES}, got {scale_dtype}")
    out, inputs = weight.shape
    group_size = min(group_size, inputs)
    groups = -(-inputs // group_size)
    padded = torch.nn.functional.pad(weight, (0, groups * group_size - inputs)).view(out, groups, group_size)
    zero_point = None
    if symmetric:
        # The largest magnitude becomes 7.5 steps: both 7 and 8 of them are half a step from it.
        scale = _storable(padded.abs().amax(-1) / 7.5, scale_dtype)
        zero = torch.full_like(scale, 8.0)
    else:
        low, high = padded.amin(-1).clamp(max=0.0), padded.amax(-1).clamp(min=0.0)
        scale = _storable((high - low) / 15.0, scale_dtype)
        zero = torch.round(-low / scale).clamp(0, 15)
        zero_point = zero.to(torch.uint8)
    values = (torch.round(padded / scale.unsqueeze(-1)) + zero.unsqueeze(-1)).clamp(0, 15)
    flat = values.reshape(out, -1)[:, :inputs].to(torch.uint8)
    own = None if bias is None else bias.detach().to(torch.float32)
    return W4Canonical(
        pack_nibbles(flat), scale.to(scale_dtype), own, inputs, group_size, input_mode, zero_point, None, activation
    )


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they will be stored: in range of the dtype, normal, positive."""
    info = torch.finfo(dtype)
    return scale.clamp(min=max(_TINY, info.smallest_normal), max=info.max).to(dtype).to(torch.float32)
