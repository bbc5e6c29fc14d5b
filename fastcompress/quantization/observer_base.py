"""What every activation observer has in common: screening the data, its range, and u8 parameters from a range."""

import math
import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .qparams import choose_qparams

__all__ = ["Observer"]


class Observer(ABC):
    """Watches one activation tensor during calibration and chooses its u8 scale and zero point.

    Attributes:
        data_min, data_max: smallest and largest finite value seen (0.0 before there is data).
        has_data: whether a finite value was seen.
        nonfinite_elems: how many NaN and infinities were seen and ignored; the first ones also cause a warning.

    Example:
        >>> observer = make_observer("minmax")
        >>> observer.update(torch.tensor([0.0, 255.0]))
        >>> observer.qparams()
        (1.0, 0)
    """

    def __init__(self) -> None:
        self.data_min = 0.0
        self.data_max = 0.0
        self.has_data = False
        self.nonfinite_elems = 0

    def update(self, x: Tensor) -> None:
        """Take a batch (any shape, float dtype) into account; NaN and infinities are left out, counted and warned of.

        Raises:
            TypeError: `x` is not a floating-point tensor.
        """
        name = f"{type(self).__name__}.update"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: `x` must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(
                f"{name}: `x` must be floating point, got {x.dtype}; observe the tensor before it is quantized"
            )
        with torch.no_grad():
            # Kernels see float32, so a float64 value beyond its range is an infinity here too.
            values = x.detach().float() if x.dtype == torch.float64 else x.detach()
            if values.numel() == 0:
                return
            low, high = (float(end) for end in torch.aminmax(values))
            if not (math.isfinite(low) and math.isfinite(high)):  # aminmax passes NaN on, so this one test covers all
                values = self._finite(values, name)
                if values.numel() == 0:
                    return
                low, high = (float(end) for end in torch.aminmax(values))
            self._observe(values, low, high)
            self.data_min = min(self.data_min, low) if self.has_data else low
            self.data_max = max(self.data_max, high) if self.has_data else high
            self.has_data = True

    def _finite(self, values: Tensor, name: str) -> Tensor:
        finite = values[torch.isfinite(values)]
        count = values.numel() - finite.numel()
        if self.nonfinite_elems == 0:
            warnings.warn(
                f"{name}: `x` holds {count} NaN or infinite values out of {values.numel()}; they are ignored here and, "
                "from now on, only counted in `nonfinite_elems`; check the calibration data",
                RuntimeWarning,
                stacklevel=3,
            )
        self.nonfinite_elems += count
        return finite

    @abstractmethod
    def _observe(self, values: Tensor, low: float, high: float) -> None:
        """Record finite, non-empty `values` from `low` to `high`; the attributes are updated afterwards."""

    @abstractmethod
    def _range(self, symmetric: bool) -> tuple[float, float]:
        """The range to represent, once there is data; values outside it will saturate."""

    def value_range(self, symmetric: bool = False) -> tuple[float, float]:
        """The chosen ``(low, high)`` in the activation's units; what lies outside saturates.

        Raises:
            ValueError: nothing finite was observed.
        """
        if not self.has_data:
            ignored = f" ({self.nonfinite_elems} NaN or infinite values were ignored)" if self.nonfinite_elems else ""
            raise ValueError(
                f"{type(self).__name__}: no data was observed{ignored}; run at least one non-empty, finite calibration "
                "batch through the layer before asking for its scale"
            )
        return self._range(symmetric)

    def qparams(self, symmetric: bool = False) -> tuple[float, int]:
        """The u8 ``(scale, zero_point)`` for the data seen: scale a positive normal float32, zero point in [0, 255].

        Args:
            symmetric: zero point 128 and a range ``[-absmax, absmax]``.

        Raises:
            ValueError: nothing finite was observed.
        """
        return choose_qparams(*self.value_range(symmetric), symmetric=symmetric)
