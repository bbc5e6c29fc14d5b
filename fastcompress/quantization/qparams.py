"""Scales and zero points from ranges, int8 weights from float ones: the float32 formulas of docs/architecture.md §1."""

import math

import torch
from torch import Tensor

from ..ops.arithmetic import WEIGHT_RANGES, WEIGHT_STEPS, round_weight
from ..ops.checks import check_scale, check_weight, float32_of

__all__ = ["TINY", "WEIGHT_METHODS", "choose_qparams", "qparams_of_ranges", "quantize_weight", "weight_scales"]

#: Smallest scale of an activation and smallest absmax of a weight channel: keeps 1 / scale and its products normal.
TINY = 2.0**-100
#: What ``weight_scales`` accepts as `method`.
WEIGHT_METHODS = ("minmax", "mse")

#: The MSE search of a weight channel scales its absmax by 1 plus these, then twice by the best so far plus finer ones.
#: Sixteen values spread thin over far outliers, so with four bits the search begins lower.
_COARSE = {bits: tuple(-0.025 * step for step in range(1, 1 + steps)) for bits, steps in ((8, 24), (4, 36))}
_FINE = tuple(0.005 * step for step in range(4, -5, -1) if step != 0)
_FINEST = tuple(0.001 * step for step in range(4, -5, -1) if step != 0)
#: Rows are searched in pieces of about this many elements, so that a piece stays in the cache between candidates.
_CHUNK_ELEMS = 1 << 18


def qparams_of_ranges(low: Tensor, high: Tensor, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """u8 scales (float32) and zero points (int32) of many ranges `low`, `high` (float32, same shape, finite) at once.

    The ranges are widened to hold 0. `symmetric` gives zero point 128 and a scale that maps the larger end to ±127.
    """
    one = torch.ones((), dtype=torch.float32, device=low.device)
    low = low.to(torch.float32).clamp(max=0.0)
    high = high.to(torch.float32).clamp(min=0.0)
    if symmetric:
        scale = (torch.maximum(-low, high) * (one / 127.0)).clamp(min=TINY)
        return scale, torch.full(scale.shape, 128, dtype=torch.int32, device=low.device)
    # Each end by itself: high - low of a range of ±float32 max would be infinite.
    part = one / 255.0
    scale = (high * part - low * part).clamp(min=TINY)
    zero_point = torch.round(-low * (one / scale)).clamp(0, 255)
    return scale, zero_point.to(torch.int32)


def choose_qparams(low: float, high: float, symmetric: bool = False) -> tuple[float, int]:
    """Scale and zero point of the u8 quantization that covers ``[low, high]`` and 0.

    Args:
        low: smallest value to represent; a positive one counts as 0.
        high: largest value to represent; a negative one counts as 0.
        symmetric: zero point 128 and ±absmax at 1 and 255, instead of the tightest range.

    Returns:
        ``(scale, zero_point)``: a positive, normal float32 value and an integer in ``[0, 255]``, to which real 0 is
        mapped exactly.

    Raises:
        ValueError: an end is not finite in float32, or ``low > high``.

    Example:
        >>> choose_qparams(0.0, 255.0)
        (1.0, 0)
        >>> choose_qparams(-1.0, 1.0, symmetric=True)[1]
        128

    Source: docs/architecture.md §1; Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (CVPR 2018), §2.1 and §3.
    """
    for name, value in (("low", low), ("high", high)):
        if not math.isfinite(float32_of(value)):
            raise ValueError(
                f"choose_qparams: `{name}` must be finite in float32, got {value!r}; keep NaN and infinities out"
            )
    if low > high:
        raise ValueError(f"choose_qparams: `low` must not exceed `high`, got [{low!r}, {high!r}]")
    scale, zero_point = qparams_of_ranges(torch.tensor(float32_of(low)), torch.tensor(float32_of(high)), symmetric)
    return float(scale), int(zero_point)


def _candidate_error(rows: Tensor, absmax: Tensor, fraction: Tensor, bits: int) -> Tensor:
    """Sum of squared rounding and clipping errors of each row, in units of (absmax / `WEIGHT_STEPS`)²."""
    scale = absmax * fraction / WEIGHT_STEPS[bits]
    steps = rows / scale.unsqueeze(1)
    error = torch.round(steps).clamp_(*WEIGHT_RANGES[bits]).sub_(steps)
    return error.square_().sum(dim=1) * fraction.square()


def _best_fraction(rows: Tensor, absmax: Tensor, bits: int) -> Tensor:
    searched = absmax > TINY  # below the floor every weight rounds to 0 anyway
    best = torch.ones_like(absmax)
    best_error = _candidate_error(rows, absmax, best, bits)
    for offsets in (_COARSE[bits], _FINE, _FINEST):
        centre = best
        for offset in offsets:
            fraction = (centre + offset).clamp(max=1.0)
            error = _candidate_error(rows, absmax, fraction, bits)
            better = searched & (error < best_error)
            best = torch.where(better, fraction, best)
            best_error = torch.where(better, error, best_error)
    return best


def weight_scales(weight: Tensor, method: str = "minmax", bits: int = 8) -> Tensor:
    """Symmetric s8 scale of each output channel of a float weight.

    Args:
        weight: float ``[out, in]`` or ``[out, in/groups, kh, kw]``.
        method: ``"minmax"``: ``max(absmax, 2^-100) / 127``, nothing is clipped (four bits: ``/ 7.5``, 7.5 becomes
            7); ``"mse"``: the fraction of that, 0.38 (four bits: 0.08) to 1, with the least squared error of the
            rounded weights (never worse than minmax).
        bits: 8 or 4, see `quantize_weight`.

    Returns:
        float32 ``[out]``, positive and normal.

    Raises:
        TypeError: `weight` is not a floating-point tensor.
        ValueError: wrong rank, an empty dimension, NaN/Inf, or an unknown `method` or `bits`.

    Example:
        >>> weight_scales(torch.tensor([[0.5, -127.0], [0.0, 0.0]]))[0]
        tensor(1.)

    Source: Nagel et al., "A White Paper on Neural Network Quantization" (arXiv 2106.08295, 2021), §3.1.
    """
    check_weight("weight_scales", weight)
    if method not in WEIGHT_METHODS:
        raise ValueError(f"weight_scales: `method` must be one of {', '.join(WEIGHT_METHODS)}, got {method!r}")
    _check_bits("weight_scales", bits)
    rows = weight.detach().to(torch.float32).flatten(1)
    absmax = rows.abs().amax(dim=1).clamp(min=TINY)
    if method == "minmax":
        return absmax / WEIGHT_STEPS[bits]
    height = max(1, _CHUNK_ELEMS // rows.shape[1])
    pieces = zip(rows.split(height), absmax.split(height), strict=True)
    return absmax * torch.cat([_best_fraction(piece, top, bits) for piece, top in pieces]) / WEIGHT_STEPS[bits]


def quantize_weight(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Round a float weight to s8: ``clamp(rint(weight / scale), -127, 127)`` per output channel.

    Args:
        weight: float ``[out, in]`` or ``[out, in/groups, kh, kw]``.
        scale: float32 ``[out]``, positive, normal, finite (see ``weight_scales``).
        bits: 8, or 4: values -8 to 7.

    Returns:
        int8, the shape of `weight`.

    Raises:
        TypeError: a wrong dtype.
        ValueError: wrong shapes, NaN/Inf in `weight`, or a scale out of range.

    Example:
        >>> quantize_weight(torch.tensor([[0.5, -1.0]]), torch.tensor([0.5]))
        tensor([[ 1, -2]], dtype=torch.int8)

    Source: docs/architecture.md §1.
    """
    check_weight("quantize_weight", weight)
    check_scale("quantize_weight", "scale", scale, weight.shape[0])
    _check_bits("quantize_weight", bits)
    return round_weight(weight.detach(), scale.to(weight.device), bits)


def _check_bits(function: str, bits: int) -> None:
    if bits not in WEIGHT_STEPS:
        raise ValueError(f"{function}: `bits` must be 4 or 8, got {bits!r}")
