"""What an algorithm is told about the inputs of a layer, and what a changed weight costs on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcompress.models.hessian import Gram

__all__ = ["InputStatistics", "StatisticsCollector"]


@dataclass(frozen=True)
class InputStatistics:
    """Sums over all rows of a layer's input ``X [rows, in]``.

    Attributes:
        hessian: float32 ``[in, in]``, ``X^T X``.
        mean_abs: float32 ``[in]``, mean magnitude of each input.
        rows: how many there were.

    Example:
        >>> InputStatistics.of(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).mean_abs
        tensor([2., 1.])
    """

    hessian: Tensor
    mean_abs: Tensor
    rows: int

    @classmethod
    def of(cls, x: Tensor) -> InputStatistics:
        """The statistics of one input ``[..., in]``."""
        collector = StatisticsCollector(x.shape[-1], x.device)
        collector.update(x)
        return collector.finished()

    def divided(self, scale: Tensor) -> InputStatistics:
        """The statistics of the same input, each of its channels divided by ``scale [in]``."""
        inverse = 1.0 / scale
        return InputStatistics(self.hessian * inverse * inverse[:, None], self.mean_abs * inverse, self.rows)

    def cost(self, difference: Tensor) -> Tensor:
        """Squared output error ``|X d^T|^2`` of each row of ``difference [out, in]``."""
        return ((difference @ self.hessian) * difference).sum(1)

    def relative_error(self, weight: Tensor, quantized: Tensor) -> float:
        """Squared output error of ``quantized`` over the squared output of ``weight``."""
        whole = float(self.cost(weight).double().sum())
        return float(self.cost(weight - quantized).double().sum()) / whole if whole > 0.0 else 0.0


class StatisticsCollector:
    """Sums up `InputStatistics` batch by batch."""

    def __init__(self, inputs: int, device: torch.device | None = None) -> None:
        self._gram = Gram(inputs, device)
        self._magnitudes = torch.zeros(inputs, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one input ``[..., in]`` into account."""
        if x.numel() == 0:
            return
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self._gram.add(rows)
        self._magnitudes += rows.abs().sum(0)

    @property
    def finite(self) -> bool:
        """False as soon as an input held NaN or infinity (or squares that overflow)."""
        return bool(torch.isfinite(self._gram.matrix.diagonal()).all())

    def finished(self) -> InputStatistics:
        """The sums so far."""
        rows = self._gram.rows
        return InputStatistics(self._gram.matrix, (self._magnitudes / max(rows, 1)).float(), rows)
