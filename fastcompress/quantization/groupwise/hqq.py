"""Half-Quadratic Quantization: fit each group's grid to most of its weights, and let outliers be outliers; no data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .grid import GroupGrid, GroupParams, Quantized, checked_matrix, restored, rounded, storable, to_groups
from .rtn import on_grid
from .scales import candidate_scales, extreme_params

__all__ = ["hqq"]

#: The paper's schedule (section 3): β grows by κ at each step.
_BETA, _KAPPA, _STEPS = 10.0, 1.01, 20

#: A symmetric scale starts at the best of these shares of the full range, because steps only find the next valley.
_STARTS = [1.05 - 0.05 * i for i in range(11)]
_SCALE_STEPS = 8

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


def _error(groups: Tensor, params: GroupParams, grid: GroupGrid) -> Tensor:
    return groups - restored(rounded(groups, params, grid), params)


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
    params = extreme_params(groups, grid)
    best, lowest = params.scale, torch.full_like(params.scale, math.inf)
    for candidate in [params, *candidate_scales(groups, grid, _STARTS)]:
        cost = _cost(_error(groups, candidate, grid), filled, p)
        best, lowest = torch.where(cost < lowest, candidate.scale, best), torch.minimum(cost, lowest)
    scale = best
    for step in range(_SCALE_STEPS):
        wide = scale.unsqueeze(-1)
        steps = rounded(groups, GroupParams(scale, params.zero), grid) - grid.middle
        outlying = _shrunk(groups / wide - steps, _BETA * _KAPPA**step, p) * wide
        fitted = ((groups - outlying) * steps).sum(-1) / steps.square().sum(-1).clamp(min=1.0)
        moved = storable(torch.where(fitted == 0, scale, fitted), grid.scale_dtype)
        if torch.equal(moved, scale):
            break
        scale = moved
        cost = _cost(_error(groups, GroupParams(scale, params.zero), grid), filled, p)
        best, lowest = torch.where(cost < lowest, scale, best), torch.minimum(cost, lowest)
    return GroupParams(best, params.zero)
