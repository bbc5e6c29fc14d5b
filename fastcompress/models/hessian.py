"""``X^T X`` of a layer's inputs and the factor of its inverse: what SparseGPT and GPTQ solve with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gram", "InverseFactor", "dampened_inverse_factor", "inverse_factor"]

#: Share of the mean diagonal that is added to it; ten times more at each retry.
_DAMPENING = 0.01
_RETRIES = 6


class Gram:
    """``X^T X`` over rows that come batch by batch; half the Hessian of a layer's squared output error.

    Args:
        size: columns of ``X``.

    Example:
        >>> gram = Gram(2)
        >>> gram.add(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> gram.matrix
        tensor([[1., 2.],
                [2., 5.]])
    """

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        self.matrix = torch.zeros(size, size, device=device)
        self.rows = 0

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Take ``[rows, size]`` into account, in float32."""
        rows = rows.float()
        self.matrix.addmm_(rows.T, rows)
        self.rows += rows.shape[0]


@dataclass(frozen=True)
class InverseFactor:
    """A factor of the inverse, and what it took.

    Attributes:
        upper: float32 upper triangular ``U`` with ``U^T U = (H + λI)^-1``.
        dampening: λ as a share of the mean diagonal.
        retries: how often λ had to grow tenfold.
    """

    upper: Tensor
    dampening: float
    retries: int


def dampened_inverse_factor(hessian: Tensor, dampening: float = _DAMPENING) -> InverseFactor:
    """Factor ``(H + λI)^-1``; λ starts at ``dampening`` times the mean diagonal and grows until that succeeds.

    Raises:
        ValueError: H holds NaN or infinity, is zero, or is not positive definite even with the largest λ.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("its inputs in calibration held NaN or infinity")
    h = hessian.double()
    diagonal = h.diagonal()
    mean = float(diagonal.mean())
    if mean <= 0.0:
        raise ValueError("its inputs were zero throughout calibration")
    # An input that was always zero says nothing; its weights are free.
    h = h + torch.diag((diagonal == 0).double() * mean)
    eye = torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
    for attempt in range(_RETRIES):
        share = dampening * 10.0**attempt
        lower, info = torch.linalg.cholesky_ex(h + share * mean * eye)
        if int(info) == 0:
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if int(info) == 0 and bool(torch.isfinite(upper).all()):
                return InverseFactor(upper.float(), share, attempt)
    raise ValueError("its Hessian is not positive definite, however much is added to the diagonal")


def inverse_factor(hessian: Tensor) -> Tensor:
    """The ``upper`` of `dampened_inverse_factor`, at 1% of the mean diagonal."""
    return dampened_inverse_factor(hessian).upper
