"""Four-bit arithmetic of docs/architecture.md §1 in plain torch: the same IEEE float32 steps as the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import quantize_rows
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical

__all__ = ["linear_sums", "weight_only_sums"]


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
