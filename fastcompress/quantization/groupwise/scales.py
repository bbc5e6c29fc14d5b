"""The scale (and zero point) of each group: from its extremes, or searched for the smallest error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastcompress.ops.rounding import asymmetric_scales, storable, to_groups

from .grid import GroupGrid, GroupParams, restored, rounded

__all__ = ["Metric", "block_metric", "candidate_scales", "extreme_params", "search_params", "squared_error"]

#: ``metric(difference [out, groups, size]) -> [out, groups]``: what an error costs.
Metric = Callable[[Tensor], Tensor]

#: Rows are searched in pieces of about this many weights, which bounds the memory.
_PIECE_ELEMS = 1 << 22

#: Shares of the full range that are tried: 1.05, 1.025, … 0.5.
_SHRINKS = [1.05 - 0.025 * i for i in range(23)]


def squared_error(difference: Tensor) -> Tensor:
    """Sum of squares of each group."""
    return difference.square().sum(-1)


def block_metric(hessian: Tensor, size: int) -> Metric:
    """Squared output error that each group causes by itself: ``d^T H_gg d`` with the group's block of ``X^T X``.

    Args:
        hessian: ``[in, in]``. size: inputs of a group.
    """
    inputs = hessian.shape[0]
    groups = -(-inputs // size)
    blocks = hessian.new_zeros(groups, size, size)
    for g in range(groups):
        part = hessian[g * size : (g + 1) * size, g * size : (g + 1) * size]
        blocks[g, : part.shape[0], : part.shape[0]] = part

    def metric(difference: Tensor) -> Tensor:
        by_group = difference.transpose(0, 1)
        return ((by_group @ blocks) * by_group).sum(-1).t()

    return metric


def extreme_params(groups: Tensor, grid: GroupGrid) -> GroupParams:
    """Scales that just cover each group's range; groups ``[out, groups, size]``."""
    if grid.symmetric:
        return _symmetric(groups.abs().amax(-1) / grid.reach, grid)
    return _asymmetric(groups.amin(-1), groups.amax(-1), grid)


def _symmetric(scale: Tensor, grid: GroupGrid) -> GroupParams:
    scale = storable(scale, grid.scale_dtype)
    return GroupParams(scale, torch.full_like(scale, grid.middle))


def _asymmetric(low: Tensor, high: Tensor, grid: GroupGrid) -> GroupParams:
    return GroupParams(*asymmetric_scales(low, high, grid.scale_dtype))


def candidate_scales(groups: Tensor, grid: GroupGrid, shrinks: list[float]) -> Iterator[GroupParams]:
    """The range shrunk by each factor; symmetric in four bits with both signs, as -8 has no counterpart."""
    if not grid.symmetric:
        low, high = groups.amin(-1), groups.amax(-1)
        for factor in shrinks:
            yield _asymmetric(low * factor, high * factor, grid)
        return
    widest = groups.abs().amax(-1) / grid.reach
    for factor in shrinks:
        yield _symmetric(widest * factor, grid)
        if grid.bits == 4:
            yield _symmetric(widest * -factor, grid)


def search_params(weight: Tensor, grid: GroupGrid, metric: Metric = squared_error) -> GroupParams:
    """For each group of ``weight [out, in]`` the scale, among shrunk ranges, whose rounding ``metric`` finds best.

    Never worse than `extreme_params`, which is among them.

    Source: Lin et al. 2023, "AWQ" (arXiv 2306.00978), section 3.2 (the clipping search); four-bit scales of either
    sign are those of llama.cpp's Q4_0.
    """
    rows = max(1, _PIECE_ELEMS // weight.shape[1])
    parts = [_search(to_groups(piece, grid.size(weight.shape[1])), grid, metric) for piece in weight.split(rows)]
    return GroupParams(torch.cat([p.scale for p in parts]), torch.cat([p.zero for p in parts]))


def _search(groups: Tensor, grid: GroupGrid, metric: Metric) -> GroupParams:
    best = extreme_params(groups, grid)
    scale, zero = best.scale, best.zero
    lowest = metric(restored(rounded(groups, best, grid), best) - groups)
    for candidate in candidate_scales(groups, grid, _SHRINKS):
        error = metric(restored(rounded(groups, candidate, grid), candidate) - groups)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        scale = torch.where(better, candidate.scale, scale)
        zero = torch.where(better, candidate.zero, zero)
    return GroupParams(scale, zero)
