"""Round to nearest: the baseline of every other algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcompress.ops.rounding import from_groups, to_groups

from .grid import GroupGrid, GroupParams, Quantized, checked_matrix, rounded
from .scales import Metric, extreme_params, search_params, squared_error

__all__ = ["find_params", "on_grid", "rtn"]


@torch.no_grad()
def rtn(weight: Tensor, grid: GroupGrid, *, search: str = "minmax") -> Quantized:
    """Round each weight to the nearest value of its group's grid.

    Args:
        weight: float ``[out, in]``.
        grid: the grid.
        search: ``"minmax"``: scales cover each group's range; ``"mse"``: of shrunk ranges the one with the smallest
            squared error.

    Raises:
        TypeError: not floating point. ValueError: not ``[out, in]``, NaN or infinity, or an unknown search.

    Example:
        >>> rtn(torch.randn(16, 64), GroupGrid(group_size=32)).dequantize().shape
        torch.Size([16, 64])

    Source: Frantar et al. 2023, "GPTQ" (arXiv 2210.17323), section 2.
    """
    matrix = checked_matrix("rtn", weight)
    return on_grid(matrix, find_params(matrix, grid, search, "rtn"), grid)


def find_params(
    matrix: Tensor, grid: GroupGrid, search: str, function: str, output: Metric | None = None
) -> GroupParams:
    """The groups' parameters by the search of this name; ``"output"`` needs its metric."""
    if search == "minmax":
        return extreme_params(to_groups(matrix, grid.size(matrix.shape[1])), grid)
    if search == "mse":
        return search_params(matrix, grid, squared_error)
    if search == "output" and output is not None:
        return search_params(matrix, grid, output)
    allowed = "'minmax' or 'mse'" + ("" if output is None else " or 'output'")
    raise ValueError(f"{function}: search must be {allowed}, got {search!r}")


def on_grid(matrix: Tensor, params: GroupParams, grid: GroupGrid) -> Quantized:
    """``matrix`` rounded with these parameters."""
    inputs = matrix.shape[1]
    return Quantized(from_groups(rounded(to_groups(matrix, grid.size(inputs)), params, grid), inputs), params, grid)
