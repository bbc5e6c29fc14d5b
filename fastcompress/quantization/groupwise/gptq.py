"""GPTQ: round one input column after the other, and let the columns that are still float take over the error."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastcompress.models.hessian import dampened_inverse_factor

from .grid import GroupGrid, GroupParams, Quantized, checked_matrix
from .refine import refined
from .rtn import find_params, rtn
from .scales import block_metric
from .statistics import InputStatistics

__all__ = ["gptq"]


@torch.no_grad()
def gptq(
    weight: Tensor,
    statistics: InputStatistics,
    grid: GroupGrid,
    *,
    search: str = "minmax",
    act_order: bool = True,
    dampening: float = 0.01,
    block_cols: int = 128,
    sweeps: int = 0,
) -> Quantized:
    """Quantize a weight so that the layer's output on its calibration inputs changes least.

    Args:
        weight: float ``[out, in]``.
        statistics: of the layer's input.
        grid: the grid. Its groups are neighbouring inputs, whatever the order of processing.
        search: how scales are found: ``"minmax"``, ``"mse"``, or ``"output"`` (smallest output error of each group).
        act_order: columns in the order of falling ``X^T X`` diagonal, with all scales from the original weight
            ("static groups"); else from first to last, each group's scales from its weights when it is reached.
        dampening: share of the mean diagonal that is added to it; ten times more while the inverse does not exist.
        block_cols: columns whose updates reach the rest together.
        sweeps: rounds of refinement afterwards (`refined`), which the paper does not have: each fits the scales to the
            integers, then the integers to the scales.

    Returns:
        The weight; its report has ``relative_error``, ``dampening``, ``retries`` and ``dead_inputs`` (always zero in
        calibration; rounded to nearest, as they may be alive later).

    Raises:
        TypeError: not floating point. ValueError: shapes that do not belong together, NaN or infinity.

    Example:
        >>> statistics = InputStatistics.of(torch.randn(100, 64))
        >>> gptq(torch.randn(16, 64), statistics, GroupGrid(group_size=32)).report["retries"]
        0

    Source: Frantar et al. 2023, "GPTQ" (arXiv 2210.17323), algorithm 1; static groups as in its reference code.
    """
    matrix = checked_matrix("gptq", weight)
    hessian = statistics.hessian
    inputs = matrix.shape[1]
    if tuple(hessian.shape) != (inputs, inputs):
        raise ValueError(f"gptq: statistics are of {hessian.shape[0]} inputs, but `weight` has {inputs}")
    _check_options(dampening, block_cols, sweeps)
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("gptq: `statistics` hold NaN or infinity; repair the model or the calibration data")
    dead = int((diagonal == 0).sum())
    if dead == inputs:  # nothing is known
        found = rtn(matrix, grid, search="minmax" if search == "output" else search)
        return Quantized(found.values, found.params, grid, {"dead_inputs": dead})
    order = torch.arange(inputs, device=matrix.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    factor = dampened_inverse_factor(hessian[order][:, order], dampening)
    values, params = _solved(matrix, hessian, order, factor.upper, grid, search, act_order, block_cols)
    found = Quantized(values, params, grid)
    if sweeps:
        added = torch.where(diagonal == 0, diagonal.mean(), 0.0) + factor.dampening * diagonal.mean()
        found = refined(matrix, found, hessian + torch.diag(added), sweeps, block_cols)
    report = {
        "relative_error": statistics.relative_error(matrix, found.dequantize()),
        "dampening": factor.dampening,
        "retries": factor.retries,
        "dead_inputs": dead,
    }
    return Quantized(found.values, found.params, grid, report)


def _check_options(dampening: float, block_cols: int, sweeps: int) -> None:
    if not 0.0 < dampening <= 1.0:
        raise ValueError(f"gptq: dampening must lie in (0, 1], got {dampening!r}")
    if block_cols < 1:
        raise ValueError(f"gptq: block_cols must be positive, got {block_cols!r}")
    if sweeps < 0:
        raise ValueError(f"gptq: sweeps must not be negative, got {sweeps!r}")


def _solved(
    matrix: Tensor,
    hessian: Tensor,
    order: Tensor,
    upper: Tensor,
    grid: GroupGrid,
    search: str,
    static: bool,
    block_cols: int,
) -> tuple[Tensor, GroupParams]:
    inputs = matrix.shape[1]
    size = grid.size(inputs)

    def found(columns: slice, now: Tensor) -> GroupParams:
        metric = block_metric(hessian[columns, columns], grid.size(now.shape[1])) if search == "output" else None
        return find_params(now, grid, search, "gptq", metric)

    # Transposed, so that a column is contiguous.
    w = matrix.t()[order].contiguous()
    values = torch.empty_like(w)
    scale, zero = (matrix.new_empty(grid.groups(inputs), matrix.shape[0]) for _ in range(2))
    if static:
        params = found(slice(0, inputs), matrix)
        scale, zero = params.scale.t().contiguous(), params.zero.t().contiguous()
    group_of = (order // size).tolist()
    for start, stop in _blocks(inputs, size, block_cols, static):
        block, factor = w[start:stop], upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            column, g = start + i, group_of[start + i]
            if not static and column % size == 0:
                # A group lies in one block, or begins one: its columns have all updates.
                columns = slice(column, min(column + size, inputs))
                params = found(columns, w[columns].t().contiguous())
                scale[g], zero[g] = params.scale[:, 0], params.zero[:, 0]
            q = (torch.round(block[i] / scale[g]) + zero[g]).clamp_(grid.low, grid.high)
            values[column] = q
            error = (block[i] - (q - zero[g]) * scale[g]) / factor[i, i]
            block[i + 1 :].addr_(factor[i, i + 1 :], error, alpha=-1.0)
            errors[i] = error
        w[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1.0)
    restored = torch.empty_like(values)
    restored[order] = values
    return restored.t().contiguous(), GroupParams(scale.t().contiguous(), zero.t().contiguous())


def _blocks(inputs: int, size: int, block_cols: int, static: bool) -> Iterator[tuple[int, int]]:
    """(first, last + 1) column of each block; unless groups are static, none holds a part of two groups."""
    if static or size <= block_cols:
        step = block_cols if static else block_cols // size * size
        for start in range(0, inputs, step):
            yield start, min(start + step, inputs)
        return
    for group in range(0, inputs, size):
        end = min(group + size, inputs)
        for start in range(group, end, block_cols):
            yield start, min(start + block_cols, end)
