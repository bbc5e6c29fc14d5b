"""Search for the clipping range of a u8 activation that minimises a loss computed from a histogram."""

from collections.abc import Callable

import torch
from torch import Tensor

from .histogram import Cells
from .qparams import qparams_of_ranges

__all__ = ["RangeLoss", "mean_squared_errors", "relative_entropies", "search_range"]

#: ``loss(lows, highs)``: float32 ``[C]`` candidate ranges to float64 ``[C]`` losses.
RangeLoss = Callable[[Tensor, Tensor], Tensor]

#: Fractions of the full range that a line search tries: evenly, and halving further for data with far outliers.
_LINEAR = 64
_FRACTIONS = tuple(step / _LINEAR for step in range(_LINEAR, 0, -1)) + tuple(2.0**-k for k in range(7, 13))
#: Around the best one: this many candidates on either side, within one coarse step.
_FINE = 12


def _grid(lows: Tensor, highs: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """float64 ``[C, 1]``: scale, lowest and highest signed level (zero point subtracted) of each candidate."""
    scale, zero_point = qparams_of_ranges(lows, highs, symmetric)
    zero = zero_point.to(torch.float64).unsqueeze(1)
    lowest = 1 - zero if symmetric else -zero
    return scale.to(torch.float64).unsqueeze(1), lowest, 255 - zero


def mean_squared_errors(cells: Cells, lows: Tensor, highs: Tensor, symmetric: bool = False) -> Tensor:
    """Mean squared rounding-and-clipping error of candidate ranges, the data taken as uniform inside each cell.

    In units of the scale, with k the (clamped) level that x goes to and r = x - k, the squared error has the
    antiderivative k/12 + r³/3: every whole level adds ∫r² over [-1/2, 1/2] = 1/12, and outside the range k stays
    while r grows. So a cell costs two evaluations, however narrow the levels are.

    Args:
        cells: the data.
        lows: float32 ``[C]``.
        highs: float32 ``[C]``.
        symmetric: zero point 128.

    Returns:
        float64 ``[C]``, in squared units of the data.
    """
    scale, lowest, highest = _grid(lows, highs, symmetric)

    def level_and_rest(edge: Tensor) -> tuple[Tensor, Tensor]:
        steps = edge / scale
        level = torch.maximum(torch.minimum(torch.round(steps), highest), lowest)
        return level, steps - level

    left_level, left_rest = level_and_rest(cells.left)
    right_level, right_rest = level_and_rest(cells.right)
    area = (right_level - left_level) / 12 + (right_rest**3 - left_rest**3) / 3
    width = (cells.right - cells.left) / scale
    point = width == 0
    mean = torch.where(point, left_rest.square(), area / torch.where(point, 1.0, width))
    return (mean * cells.count).sum(dim=1) / cells.count.sum() * scale.squeeze(1).square()


def relative_entropies(cells: Cells, lows: Tensor, highs: Tensor, symmetric: bool = False) -> Tensor:
    """Kullback-Leibler divergence (nats) between the clipped data and its quantized version, for candidate ranges.

    P is the histogram with the mass outside the range added to the outermost occupied bin inside; Q spreads the mass
    inside, level by level, evenly over that level's occupied bins. A range with no data inside gets an infinite
    divergence.

    Args:
        cells: the data, narrow cells of equal width.
        lows: float32 ``[C]``.
        highs: float32 ``[C]``.
        symmetric: zero point 128.

    Returns:
        float64 ``[C]``.
    """
    scale, lowest, highest = _grid(lows, highs, symmetric)
    level = torch.round((cells.left + cells.right) / 2 / scale)
    inside = (level >= lowest) & (level <= highest)
    kept = torch.where(inside, cells.count, 0.0)
    slot = torch.where(inside, level - lowest, 0.0).to(torch.int64)

    rows = kept.shape[0]
    mass = torch.zeros(rows, 256, dtype=torch.float64).scatter_add_(1, slot, kept)
    occupied = torch.zeros(rows, 256, dtype=torch.float64).scatter_add_(1, slot, inside.to(torch.float64))
    spread = (mass / occupied.clamp(min=1.0)).gather(1, slot)

    clipped = kept.clone()
    below = torch.where(level < lowest, cells.count, 0.0).sum(dim=1, keepdim=True)
    above = torch.where(level > highest, cells.count, 0.0).sum(dim=1, keepdim=True)
    first = inside.to(torch.int8).argmax(dim=1, keepdim=True)
    last = inside.shape[1] - 1 - inside.flip(1).to(torch.int8).argmax(dim=1, keepdim=True)
    clipped.scatter_add_(1, first, below).scatter_add_(1, last, above)

    p = clipped / clipped.sum(dim=1, keepdim=True)
    q = spread / kept.sum(dim=1, keepdim=True)
    divergence = torch.where(inside, p * torch.log(p / q), 0.0).sum(dim=1)
    return torch.where(inside.any(dim=1), divergence, torch.inf)


class _Search:
    """The best range so far of one search."""

    def __init__(self, low: float, high: float, loss: RangeLoss, min_fraction: float) -> None:
        self.full_low, self.full_high = low, high
        self.loss = loss
        self.min_span = (high - low) * min_fraction
        self.low_fraction = self.high_fraction = 1.0
        self.value = float(self._evaluate(torch.ones(1), torch.ones(1))[0])

    def _evaluate(self, low_fractions: Tensor, high_fractions: Tensor) -> Tensor:
        lows, highs = low_fractions * self.full_low, high_fractions * self.full_high
        losses = self.loss(lows, highs)
        return torch.where(highs - lows >= self.min_span * (1 - 1e-6), losses, torch.inf)

    def line(self, fractions: Tensor, move_low: bool, move_high: bool) -> None:
        """Try `fractions` of the full range at the ends that move; ties keep the wider range, which comes first."""
        lows = fractions if move_low else torch.full_like(fractions, self.low_fraction)
        highs = fractions if move_high else torch.full_like(fractions, self.high_fraction)
        losses = self._evaluate(lows, highs)
        best = int(losses.argmin())
        if float(losses[best]) < self.value:
            self.value = float(losses[best])
            self.low_fraction, self.high_fraction = float(lows[best]), float(highs[best])


def search_range(low: float, high: float, loss: RangeLoss, min_fraction: float = 0.0) -> tuple[float, float]:
    """The range inside ``[low, high]`` of least loss, found by line searches: each end by itself, and both together.

    Args:
        low: at most 0.
        high: at least 0.
        loss: see ``RangeLoss``; called with some 70 candidates at a time.
        min_fraction: ranges narrower than this fraction of the full one are not considered.

    Returns:
        ``(low, high)``, never worse than the full range.
    """
    if low == high:
        return low, high
    search = _Search(low, high, loss, min_fraction)
    coarse = torch.tensor(_FRACTIONS)
    ends = [(move_low, not move_low) for move_low in (False, True) if (low if move_low else high) != 0]
    # Each end from the full range first: an outlier at one end must not pull in the other one.
    for _ in range(2 if len(ends) == 2 else 1):
        for move_low, move_high in ends:
            search.line(coarse, move_low, move_high)
        if len(ends) == 2:
            search.line(coarse, True, True)
    steps = torch.arange(_FINE, -_FINE - 1, -1) / _FINE
    for round_ in range(2):
        for move_low, move_high in ends:
            best = search.low_fraction if move_low else search.high_fraction
            reach = min(1.0 / _LINEAR, best / 2) / (_FINE / 2) ** round_
            search.line((best + steps * reach).clamp(max=1.0), move_low, move_high)
    return low * search.low_fraction, high * search.high_fraction
