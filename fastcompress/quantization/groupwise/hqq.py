"""Half-Quadratic Quantization: fit each group's grid to most of its weights, and let outliers be outliers; no data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastcompress.ops.rounding import storable, to_groups

from .grid import GroupGrid, GroupParams, Quantized, checked_matrix, restored, rounded
from .rtn import on_grid
from .scales import extreme_params

__all__ = ["hqq"]

#: The paper's schedule (section 3): β grows by κ at each step.
_BETA, _KAPPA, _STEPS = 10.0, 1.01, 20

#: A symmetric scale starts at the best of these multiples of the narrowest, as steps only find the next valley.
_WIDENINGS = [1.0 + 0.03 * i for i in range(8)]
_SCALE_STEPS = 6

_PIECE_ELEMS = 1 << 21


@torch.no_grad()
def hqq(weight: Tensor, grid: GroupGrid, *, p: float = 0.7) -> Quantized:
    """Round weights on the grid with the smallest ``Σ|w - ŵ|^p``, found by half-quadratic splitting.

    An asymmetric grid keeps the scale that covers its range and gets a float minimum; a symmetric one has nothing to
    shift, so the same steps move its scale.

    Args:
        weight: float ``[out, in]``.
        grid: the grid.
        p: norm, in (0, 1]; the smaller, the less outliers count.

    Raises:
        TypeError: not floating point. ValueError: not ``[out, in]``, NaN or infinity, or p out of range.

    Example:
        >>> hqq(torch.randn(16, 64), GroupGrid(group_size=32, symmetric=False)).params.minimum.shape
        torch.Size([16, 2])

    Source: Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". Errors are measured in
    steps of the grid, so that β means the same whatever the weights' size; the symmetric form is our own.
    """
    matrix = checked_matrix("hqq", weight)
    if not 0.0 < p <= 1.0:
        raise ValueError(f"hqq: p must lie in (0, 1], got {p!r}")
    inputs = matrix.shape[1]
    size = grid.size(inputs)
    filled = to_groups(torch.ones(1, inputs, device=matrix.device), size)
    parts = []
    for piece in matrix.split(max(1, _PIECE_ELEMS // inputs)):
        groups = to_groups(piece, size)
        find = _best_scale if grid.symmetric else _best_minimum
        parts.append(find(groups, filled, grid, p))
    params = GroupParams(
        torch.cat([part.scale for part in parts]),
        torch.cat([part.zero for part in parts]),
        None if grid.symmetric else torch.cat([part.minimum for part in parts if part.minimum is not None]),
    )
    return on_grid(matrix, params, grid)


def _shrunk(error: Tensor, beta: float, p: float) -> Tensor:
    """The part of an error (in steps) that counts as an outlier's: the paper's generalized soft threshold."""
    size = error.abs()
    return torch.sign(error) * (size - size.clamp(min=1e-8).pow(p - 1.0) / beta).clamp_(min=0.0)


def _cost(error: Tensor, filled: Tensor, p: float) -> Tensor:
    return (error.abs().pow(p) * filled).sum(-1)


def _best_minimum(groups: Tensor, filled: Tensor, grid: GroupGrid, p: float) -> GroupParams:
    start = extreme_params(groups, grid)
    scale, none = start.scale, torch.zeros_like(start.zero)
    minimum = -start.zero * scale
    best, lowest = minimum, torch.full_like(scale, math.inf)
    count = filled.sum(-1)
    for step in range(_STEPS):
        params = GroupParams(scale, none, minimum)
        values = rounded(groups, params, grid)
        error = groups - restored(values, params)
        cost = _cost(error, filled, p)
        best, lowest = torch.where(cost < lowest, minimum, best), torch.minimum(cost, lowest)
        wide = scale.unsqueeze(-1)
        outlying = _shrunk(error / wide, _BETA * _KAPPA**step, p) * wide
        minimum = ((groups - outlying - values * wide) * filled).sum(-1) / count
    return GroupParams(scale, none, best)


def _best_scale(groups: Tensor, filled: Tensor, grid: GroupGrid, p: float) -> GroupParams:
    scale, lowest = _positive_scale(groups, filled, grid, p)
    if grid.bits == 4:
        # A negative scale is a positive one for the mirrored weights: -8 has no counterpart.
        mirrored, cost = _positive_scale(-groups, filled, grid, p)
        scale = torch.where(cost < lowest, -mirrored, scale)
    return GroupParams(scale, torch.full_like(scale, grid.middle))


def _positive_scale(groups: Tensor, filled: Tensor, grid: GroupGrid, p: float) -> tuple[Tensor, Tensor]:
    """(scale, cost) of each group: the best of a few, and from there half-quadratic steps."""
    # As in the paper, the range stays covered: nothing is clipped by more than half a step.
    narrow = torch.maximum(
        groups.amax(-1) / (grid.high - grid.middle + 0.5), -groups.amin(-1) / (grid.middle - grid.low + 0.5)
    )
    zero = torch.full_like(narrow, grid.middle)
    best, lowest = narrow, torch.full_like(narrow, math.inf)

    def take(scale: Tensor) -> None:
        nonlocal best, lowest
        params = GroupParams(storable(scale, grid.scale_dtype), zero)
        cost = _cost(groups - restored(rounded(groups, params, grid), params), filled, p)
        best, lowest = torch.where(cost < lowest, params.scale, best), torch.minimum(cost, lowest)

    for widening in _WIDENINGS:
        take(narrow * widening)
    scale = best
    for step in range(_SCALE_STEPS):
        wide = scale.unsqueeze(-1)
        steps = rounded(groups, GroupParams(scale, zero), grid) - grid.middle
        outlying = _shrunk(groups / wide - steps, _BETA * _KAPPA**step, p) * wide
        fitted = ((groups - outlying) * steps).sum(-1) / steps.square().sum(-1).clamp(min=1.0)
        scale = storable(torch.maximum(fitted, narrow), grid.scale_dtype)
        take(scale)
    return best, lowest
