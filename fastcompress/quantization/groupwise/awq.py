"""AWQ: enlarge the weights that meet large inputs before rounding, so that they lose less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcompress.ops.rounding import from_groups, to_groups

from .grid import GroupGrid, Quantized, checked_matrix, restored, rounded
from .rtn import find_params, on_grid
from .scales import block_metric, extreme_params
from .statistics import InputStatistics

__all__ = ["AwqScale", "awq", "awq_scale"]

#: A scale and its reciprocal stay in this range.
_LIMIT = 1e4


@dataclass(frozen=True)
class AwqScale:
    """By what to multiply each input channel of the weights, and to divide the input.

    Attributes:
        scale: float32 ``[in]``, positive.
        alpha: the exponent that won; 0 leaves everything as it is.
        error: squared output error with the scale, over the one without.
    """

    scale: Tensor
    alpha: float
    error: float


@torch.no_grad()
def awq_scale(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    grid: GroupGrid,
    *,
    steps: int = 20,
    shared: Tensor | None = None,
) -> AwqScale:
    """Find ``s = mean|x|^α``, normalised, with the α in [0, 1) that gives the smallest output error.

    Args:
        weights: float ``[out, in]``, all linears that read the input.
        statistics: of that input; the error is over all of it, not a sample.
        grid: the grid.
        steps: values of α that are tried.
        shared: int64 ``[in]``: inputs with the same number get the same scale; None: each its own.

    Raises:
        TypeError, ValueError: weights that are not float ``[out, in]``, NaN or infinity, or other inputs.

    Example:
        >>> x = torch.randn(100, 64) * torch.logspace(-1, 1, 64)
        >>> awq_scale([torch.randn(16, 64)], InputStatistics.of(x), GroupGrid(group_size=32)).scale.shape
        torch.Size([64])

    Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization" (arXiv 2306.00978), section 3.2, eq. 5.
    """
    if not weights:
        raise ValueError("awq_scale: `weights` is empty; pass every linear that reads the input")
    if steps < 1:
        raise ValueError(f"awq_scale: steps must be positive, got {steps!r}")
    matrix = torch.cat([checked_matrix("awq_scale", weight) for weight in weights])
    _check(statistics, matrix.shape[1], "awq_scale")
    size = grid.size(matrix.shape[1])
    magnitude = _averaged(statistics.mean_abs, shared).clamp(min=1e-6)
    best, first = AwqScale(torch.ones_like(magnitude), 0.0, 1.0), 0.0
    for step in range(steps):
        alpha = step / steps
        scale = magnitude.double().pow(alpha)
        scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(1.0 / _LIMIT, _LIMIT).float()
        groups = to_groups(matrix * scale, size)
        params = extreme_params(groups, grid)
        wrong = from_groups(groups - restored(rounded(groups, params, grid), params), matrix.shape[1])
        error = float(statistics.cost(wrong / scale).double().sum())
        if step == 0:
            first = error
        elif error < best.error * first:
            best = AwqScale(scale, alpha, error / first)
    return best


@torch.no_grad()
def awq(
    weight: Tensor,
    statistics: InputStatistics,
    grid: GroupGrid,
    *,
    scale: Tensor | None = None,
    clip: bool = True,
) -> Quantized:
    """Quantize a weight whose inputs are divided by ``scale``, each group clipped where its output error is smallest.

    Args:
        weight: float ``[out, in]``, not yet scaled.
        statistics: of the input before it is divided.
        grid: the grid.
        scale: float32 ``[in]`` from `awq_scale`; None: nothing takes it, so only clipping helps.
        clip: search the clipping; False: cover each group's range.

    Returns:
        ``weight * scale`` on the grid, for inputs that are divided by it; its report has ``relative_error``.

    Raises:
        TypeError, ValueError: as `awq_scale`.

    Example:
        >>> statistics = InputStatistics.of(torch.randn(100, 64))
        >>> awq(torch.randn(16, 64), statistics, GroupGrid(group_size=32)).values.shape
        torch.Size([16, 64])

    Source: Lin et al. 2023, "AWQ" (arXiv 2306.00978), section 3.2.
    """
    matrix = checked_matrix("awq", weight)
    _check(statistics, matrix.shape[1], "awq")
    if scale is not None:
        matrix, statistics = matrix * scale, statistics.divided(scale)
    metric = block_metric(statistics.hessian, grid.size(matrix.shape[1]))
    params = find_params(matrix, grid, "output" if clip else "minmax", "awq", metric)
    found = on_grid(matrix, params, grid)
    found.report["relative_error"] = statistics.relative_error(matrix, found.dequantize())
    return found


def _averaged(magnitude: Tensor, shared: Tensor | None) -> Tensor:
    """Each input's magnitude, averaged over those that share a scale."""
    if shared is None:
        return magnitude
    count = int(shared.max()) + 1
    total = magnitude.new_zeros(count).index_add_(0, shared, magnitude)
    return (total / torch.bincount(shared, minlength=count))[shared]


def _check(statistics: InputStatistics, inputs: int, function: str) -> None:
    if tuple(statistics.hessian.shape) != (inputs, inputs):
        raise ValueError(
            f"{function}: statistics are of {statistics.hessian.shape[0]} inputs, but the weight has {inputs}"
        )
    if not bool(torch.isfinite(statistics.hessian).all()):
        raise ValueError(f"{function}: `statistics` hold NaN or infinity; repair the model or the calibration data")
