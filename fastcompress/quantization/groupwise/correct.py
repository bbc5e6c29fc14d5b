"""Make up for what the quantized layers in front changed, before a weight is rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import InputStatistics

__all__ = ["corrected"]


def corrected(matrix: Tensor, statistics: InputStatistics, dampening: float = 0.01) -> Tensor:
    """The weight whose output on the inputs ``X`` is nearest to that of ``matrix`` on the unquantized model's ``X0``.

    ``W (X0^T X + λI) (X^T X + λI)^-1`` minimises ``|X0 W^T - X V^T|^2 + λ|W - V|^2`` over V.

    Args:
        matrix: float32 ``[out, in]``.
        statistics: of the inputs; without ``cross`` the weight stays as it is.
        dampening: λ as a share of the mean diagonal of ``X^T X``.

    Source: Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration" (arXiv
    2504.02692), section 3, whose objective it is; solved here in closed form before GPTQ.
    """
    if statistics.cross is None:
        return matrix
    hessian, cross = statistics.hessian.double(), statistics.cross.double()
    added = (
        dampening * hessian.diagonal().mean() * torch.eye(hessian.shape[0], dtype=hessian.dtype, device=matrix.device)
    )
    lower, info = torch.linalg.cholesky_ex(hessian + added)
    if int(info) != 0:
        return matrix
    # The change alone, so that equal inputs change nothing at all.
    change = torch.cholesky_solve((cross - hessian).T, lower).T
    return matrix + matrix @ change.float()
