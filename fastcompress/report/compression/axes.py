"""Axes of the plots: round ticks, and the place of a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "axis_over"]


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``; logarithmic or not."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        part = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + part * (self.end - self.start)


def axis_over(
    values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False, margin: float = 0.08
) -> Axis:
    """An axis that covers ``values`` with a margin; ``zero`` lets it begin at 0.

    Example:
        >>> axis_over([0.0, 10.0], 0.0, 100.0, margin=0.0).place(5.0)
        50.0
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        low, high = math.log(low), math.log(high)
    low = 0.0 if zero and not log and low >= 0 else low
    spread = high - low or max(abs(high) * 0.02, 1e-3)
    if high == low:
        low -= spread
    low, high = (low if zero and low == 0 else low - margin * spread), high + margin * spread
    if log:
        low, high = math.exp(low), math.exp(high)
        return Axis(low, high, start, end, _log_ticks(low, high), True)
    return Axis(low, high, start, end, _ticks(low, high))


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Three to seven round numbers within the range."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(step * index for index in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2, 5 of each power of ten within the range; more where that leaves fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = tuple(f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high)
        if len(found) >= 2:
            return found
    return _ticks(low, high)
