"""Activation observers by name: ``make_observer("minmax" | "moving_average" | "percentile" | "mse" | "entropy")``."""

import inspect
from typing import Any

from torch import Tensor

from .observer_base import Observer
from .observers_histogram import EntropyObserver, MSEObserver, PercentileObserver

__all__ = ["OBSERVERS", "MinMaxObserver", "MovingAverageObserver", "Observer", "make_observer"]


class MinMaxObserver(Observer):
    """Covers everything seen: nothing of the calibration data saturates."""

    def _observe(self, values: Tensor, low: float, high: float) -> None:
        pass  # the base class keeps the range of the data

    def _range(self, symmetric: bool) -> tuple[float, float]:
        return self.data_min, self.data_max


class MovingAverageObserver(Observer):
    """Exponential moving averages of each batch's minimum and maximum; the order of the batches matters.

    Args:
        averaging: weight of the newest batch, in (0, 1]. The default suits the tens of batches of a calibration;
            training, with its thousands of steps, uses 0.01 or less.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (CVPR 2018), §3.1.
    """

    def __init__(self, averaging: float = 0.1) -> None:
        super().__init__()
        if not 0.0 < averaging <= 1.0:
            raise ValueError(f"MovingAverageObserver: `averaging` must be in (0, 1], got {averaging}")
        self.averaging = averaging
        self._low = self._high = 0.0

    def _observe(self, values: Tensor, low: float, high: float) -> None:
        weight = self.averaging if self.has_data else 1.0
        self._low = (1.0 - weight) * self._low + weight * low
        self._high = (1.0 - weight) * self._high + weight * high

    def _range(self, symmetric: bool) -> tuple[float, float]:
        return self._low, self._high


#: Name → class of every observer.
OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "entropy": EntropyObserver,
}


def make_observer(name: str, **options: Any) -> Observer:
    """A fresh observer.

    Args:
        name: a key of ``OBSERVERS``.
        options: ``averaging`` (moving_average), ``percentile`` (percentile), ``bins`` (percentile, mse, entropy).

    Raises:
        ValueError: an unknown name, or an option's value out of range.
        TypeError: an option that this observer does not have.

    Example:
        >>> make_observer("percentile", percentile=99.9).has_data
        False
    """
    if name not in OBSERVERS:
        raise ValueError(f"make_observer: `name` must be one of {', '.join(OBSERVERS)}, got {name!r}")
    kind = OBSERVERS[name]
    allowed = [option for option in inspect.signature(kind).parameters if option != "self"]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise TypeError(
            f"make_observer: observer {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"allowed: {', '.join(allowed) or 'none'}"
        )
    return kind(**options)
