"""Improve a quantized weight by turns: the best scales for its integers, then the best integers for its scales."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcompress.ops.rounding import from_groups, storable, to_groups

from .grid import GroupGrid, GroupParams, Quantized, restored

__all__ = ["refined"]

#: Relative weight of the scales that are there: keeps the normal equations solvable.
_RIDGE = 1e-6

#: Rows are fitted in pieces of about this many elements of normal equations.
_PIECE_ELEMS = 1 << 22


def refined(matrix: Tensor, found: Quantized, hessian: Tensor, sweeps: int, block_cols: int = 128) -> Quantized:
    """Lower ``Σ d^T H d`` over the rows of ``d = matrix - ŵ`` by turns: scales by least squares, integers one by one.

    Args:
        matrix: float32 ``[out, in]``.
        found: it on its grid, without minima.
        hessian: float32 ``[in, in]``, dampened, so that its diagonal is positive.
        sweeps: how often all integers are visited.
        block_cols: columns whose updates reach the rest together.

    Returns:
        The weight; a row whose error did not fall is that of ``found``.

    Source: Behdin et al. 2023, "QuantEase" (arXiv 2309.01885), algorithm 1, for the integers.
    """
    values, params = found.values, found.params
    for _ in range(sweeps):
        params = _best_scales(matrix, values, params, hessian, found.grid)
        values = _best_values(matrix, values, params, hessian, found.grid, block_cols)
    made = Quantized(values, params, found.grid, dict(found.report))
    costs = [_cost(matrix - q.dequantize(), hessian) for q in (found, made)]
    better = (costs[1] < costs[0])[:, None]
    chosen = GroupParams(
        torch.where(better, params.scale, found.params.scale), torch.where(better, params.zero, found.params.zero)
    )
    return Quantized(torch.where(better, values, found.values), chosen, found.grid, made.report)


def _cost(difference: Tensor, hessian: Tensor) -> Tensor:
    return ((difference @ hessian) * difference).sum(1)


def _best_scales(matrix: Tensor, values: Tensor, params: GroupParams, hessian: Tensor, grid: GroupGrid) -> GroupParams:
    rows = max(1, _PIECE_ELEMS // params.scale.shape[1] ** 2)
    pieces = zip(matrix.split(rows), values.split(rows), params.scale.split(rows), params.zero.split(rows), strict=True)
    scale = torch.cat([_fitted(w, v, GroupParams(s, z), hessian, grid) for w, v, s, z in pieces])
    return GroupParams(scale, params.zero)


def _fitted(matrix: Tensor, values: Tensor, params: GroupParams, hessian: Tensor, grid: GroupGrid) -> Tensor:
    """The scales that solve each row's normal equations ``V^T H V s = V^T H w``; V has a column for each group."""
    out, inputs = matrix.shape
    size, groups = grid.size(inputs), grid.groups(inputs)
    steps = from_groups(to_groups(values, size) - params.zero.unsqueeze(-1), inputs)
    products = matrix.new_empty(out, groups, groups)
    wanted = matrix.new_empty(out, groups)
    for g in range(groups):
        part = slice(g * size, min((g + 1) * size, inputs))
        reached = steps[:, part] @ hessian[part]
        products[:, g] = to_groups(reached * steps, size).sum(-1)
        wanted[:, g] = (reached * matrix).sum(1)
    missing = (wanted - (products @ params.scale.unsqueeze(-1)).squeeze(-1)).double()
    diagonal = products.diagonal(dim1=1, dim2=2).double()
    system = products.double() + torch.diag_embed(_RIDGE * diagonal + 1e-30)
    change, info = torch.linalg.solve_ex(system, missing.unsqueeze(-1))
    moved = params.scale + change.squeeze(-1).float()
    usable = torch.isfinite(moved) & (moved.sign() == params.scale.sign()) & (info == 0)[:, None] & (diagonal > 0)
    return storable(torch.where(usable, moved, params.scale), grid.scale_dtype)


def _best_values(
    matrix: Tensor, values: Tensor, params: GroupParams, hessian: Tensor, grid: GroupGrid, block_cols: int
) -> Tensor:
    """Each column in turn rounded to what is best given all others."""
    inputs = matrix.shape[1]
    size = grid.size(inputs)
    weight = from_groups(restored(to_groups(values, size), params), inputs)
    # Transposed, so that a column is contiguous.
    q, w = values.t().contiguous(), weight.t().contiguous()
    scale, zero = params.scale.t().contiguous(), params.zero.t().contiguous()
    slope, diagonal = hessian @ (matrix.t() - w), hessian.diagonal()
    for start in range(0, inputs, block_cols):
        stop = min(start + block_cols, inputs)
        local, own = slope[start:stop], hessian[start:stop, start:stop]
        changes = torch.empty_like(local)
        for i in range(stop - start):
            column, g = start + i, (start + i) // size
            best = w[column] + local[i] / diagonal[column]
            q[column] = (torch.round(best / scale[g]) + zero[g]).clamp_(grid.low, grid.high)
            new = (q[column] - zero[g]) * scale[g]
            changes[i] = new - w[column]
            w[column] = new
            local.addr_(own[:, i], changes[i], alpha=-1.0)
        slope[:start].addmm_(hessian[:start, start:stop], changes, alpha=-1.0)
        slope[stop:].addmm_(hessian[stop:, start:stop], changes, alpha=-1.0)
    return q.t().contiguous()
