"""A histogram of unknown data in bounded memory, whose counts do not depend on the data's order or batching."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cells", "Histogram"]

#: Values are binned in pieces of this many, which bounds the temporary memory (two 8-byte numbers per value).
_CHUNK_ELEMS = 1 << 18
#: Finest bin width 2^-112: quantization scales are at least 2^-100.
_MIN_EXPONENT = -112


@dataclass(frozen=True)
class Cells:
    """The occupied bins of a histogram in ascending order: `count` values in ``[left, right]`` (float64, same length).

    A cell with ``left == right`` holds values known exactly.
    """

    left: Tensor
    right: Tensor
    count: Tensor

    def without_zeros(self) -> "Cells":
        """The same without the cell of exact zeros."""
        keep = (self.left != 0) | (self.right != 0)
        return Cells(self.left[keep], self.right[keep], self.count[keep])


class Histogram:
    """Counts in `bins` equal bins that always cover 0 and all data; the range grows by merging neighbours.

    Bin i spans ``[i, i + 1) * 2^exponent`` for integers i, so doubling the width merges bins 2i and 2i + 1 exactly and
    nothing is ever split or interpolated: after any sequence of updates the counts are those of a single
    update with all the data. The price is a resolution between range / bins and 2 * range / bins.
    Exact zeros, of which ReLU makes many, are counted apart.

    Args:
        bins: number of bins, at least 2.

    Example:
        >>> histogram = Histogram(bins=4)
        >>> histogram.update(torch.tensor([0.0, 1.0, 3.0]), 0.0, 3.0)
        >>> histogram.width, histogram.zeros
        (1.0, 1)
    """

    def __init__(self, bins: int = 2048) -> None:
        if bins < 2:
            raise ValueError(f"Histogram: `bins` must be at least 2, got {bins}")
        self.bins = bins
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf
        self._exponent = _MIN_EXPONENT
        self._first = 0
        self._counts = torch.zeros(bins, dtype=torch.int64)

    @property
    def width(self) -> float:
        """Width of a bin, in the data's units; a power of two."""
        return math.ldexp(1.0, self._exponent)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.zeros + int(self._counts.sum())

    def _index(self, value: float, exponent: int) -> int:
        return math.floor(math.ldexp(value, -exponent))

    def _cover(self, low: float, high: float) -> None:
        exponent = self._exponent
        while self._index(high, exponent) - self._index(low, exponent) >= self.bins:
            exponent += 1
        first = self._index(low, exponent)
        if exponent == self._exponent and first == self._first:
            return
        occupied = self._counts.nonzero().flatten()
        moved = torch.bitwise_right_shift(occupied + self._first, exponent - self._exponent) - first
        counts = torch.zeros_like(self._counts)
        counts.index_add_(0, moved, self._counts[occupied])
        self._counts, self._exponent, self._first = counts, exponent, first

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Count finite `values` (any shape, float dtype up to 32 bits) whose minimum is `low` and maximum `high`."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(min(self.low, 0.0), max(self.high, 0.0))
        factor = math.ldexp(1.0, -self._exponent)
        for piece in values.reshape(-1).split(_CHUNK_ELEMS):
            # float64: the product with a power of two is exact, and cannot overflow for the finest bins.
            index = piece.to(torch.float64).mul_(factor).floor_().to(torch.int64).sub_(self._first)
            self._counts += torch.bincount(index, minlength=self.bins).cpu()
            zeros = piece.numel() - int(torch.count_nonzero(piece))
            self._counts[-self._first] -= zeros
            self.zeros += zeros

    def cells(self) -> Cells:
        """Occupied bins, clipped to the smallest and largest value seen, the exact zeros as a cell of their own."""
        occupied = self._counts.nonzero().flatten()
        index = (occupied + self._first).to(torch.float64)
        left = (index * self.width).clamp(self.low, self.high)
        right = ((index + 1) * self.width).clamp(self.low, self.high)
        count = self._counts[occupied].to(torch.float64)
        if self.zeros:
            at = int((index < 0).sum())
            zero = torch.zeros(1, dtype=torch.float64)
            left, right = (torch.cat((edge[:at], zero, edge[at:])) for edge in (left, right))
            count = torch.cat((count[:at], zero + self.zeros, count[at:]))
        return Cells(left, right, count)
