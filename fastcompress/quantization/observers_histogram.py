"""Observers that clip outliers; each keeps a histogram of bounded size (see ``histogram.Histogram``)."""

import math
from functools import partial

import torch
from torch import Tensor

from .histogram import Cells, Histogram
from .observer_base import Observer
from .range_search import mean_squared_errors, relative_entropies, search_range

__all__ = ["EntropyObserver", "MSEObserver", "PercentileObserver", "order_statistic"]


class _HistogramObserver(Observer):
    """Keeps a histogram of `bins` bins."""

    def __init__(self, bins: int = 2048) -> None:
        super().__init__()
        if bins < 512:
            raise ValueError(f"{type(self).__name__}: `bins` must be at least 512 (two per level), got {bins}")
        self.histogram = Histogram(bins)

    def _observe(self, values: Tensor, low: float, high: float) -> None:
        self.histogram.update(values, low, high)


def order_statistic(cells: Cells, rank: int) -> float:
    """Value number `rank` (from 0) of the sorted data, to within the width of its cell; the extremes are exact."""
    ends = cells.count.cumsum(0)
    if rank == 0:
        return float(cells.left[0])
    if rank == int(ends[-1]) - 1:
        return float(cells.right[-1])
    cell = int(torch.searchsorted(ends, torch.tensor(float(rank), dtype=torch.float64), right=True))
    left, right, count = float(cells.left[cell]), float(cells.right[cell]), float(cells.count[cell])
    return left + (right - left) * (rank - (float(ends[cell]) - count) + 0.5) / count


class PercentileObserver(_HistogramObserver):
    """Clips the outermost values at both ends.

    Args:
        percentile: in (50, 100]: the range goes from the ``100 - percentile`` to the `percentile` percentile of all
            values (linear interpolation between neighbours, as ``torch.quantile``), each to within one bin.
        bins: histogram size.

    Source: McKinstry et al., "Discovering Low-Precision Networks Close to Full-Precision Networks for Efficient
    Inference" (arXiv 1809.04191, 2018); Wu et al., "Integer Quantization for Deep Learning Inference" (arXiv
    2004.09602, 2020), section "Calibration".
    """

    def __init__(self, percentile: float = 99.99, bins: int = 2048) -> None:
        super().__init__(bins)
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"PercentileObserver: `percentile` must be in (50, 100], got {percentile}")
        self.percentile = percentile

    def _range(self, symmetric: bool) -> tuple[float, float]:
        cells = self.histogram.cells()
        last = self.histogram.total - 1

        def quantile(fraction: float) -> float:
            position = fraction * last
            lower, upper = order_statistic(cells, math.floor(position)), order_statistic(cells, math.ceil(position))
            return lower + (upper - lower) * (position - math.floor(position))

        return quantile(1.0 - self.percentile / 100.0), quantile(self.percentile / 100.0)


def _outer(observer: Observer, symmetric: bool) -> tuple[float, float]:
    """The widest range worth trying: the data and 0."""
    low, high = min(observer.data_min, 0.0), max(observer.data_max, 0.0)
    if symmetric:
        return -max(-low, high), max(-low, high)
    return low, high


class MSEObserver(_HistogramObserver):
    """Clips where that lowers the mean squared error of the quantized values.

    Args:
        bins: histogram size.

    Source: Sung et al., "Resiliency of Deep Neural Networks under Quantization" (arXiv 1511.06488, 2015); Nagel
    et al., "A White Paper on Neural Network Quantization" (arXiv 2106.08295, 2021), §3.1.
    """

    def _range(self, symmetric: bool) -> tuple[float, float]:
        low, high = _outer(self, symmetric)
        loss = partial(mean_squared_errors, self.histogram.cells(), symmetric=symmetric)
        # Symmetric candidates differ in their larger end only, so one end is enough to search.
        return search_range(0.0 if symmetric else low, high, loss)


class EntropyObserver(_HistogramObserver):
    """Clips where that loses the least information about the distribution: least KL divergence.

    Differs from TensorRT's method, which is symmetric, in that both ends of the range are searched and candidates are
    quantized on the u8 grid that they lead to. Exact zeros are left out: they are represented exactly by every
    candidate, and a ReLU's spike of them would drown the rest (TensorRT's tools drop that bin too). Ranges whose
    levels would be narrower than the histogram's bins are not considered, because every such range looks lossless.

    Args:
        bins: histogram size.

    Source: Migacz, "8-bit Inference with TensorRT" (GTC 2017, talk S7310), entropy calibration.
    """

    def _range(self, symmetric: bool) -> tuple[float, float]:
        low, high = _outer(self, symmetric)
        cells = self.histogram.cells().without_zeros()
        if cells.count.numel() == 0:
            return low, high
        loss = partial(relative_entropies, cells, symmetric=symmetric)
        full = high - (0.0 if symmetric else low)
        finest = self.histogram.width * (127 if symmetric else 255)
        return search_range(0.0 if symmetric else low, high, loss, min_fraction=min(1.0, finest / full))
