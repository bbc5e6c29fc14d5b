"""How much each weight matters: scores of the weight's shape, never negative, higher is more important."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "CRITERIA",
    "NEEDS_DATA",
    "magnitude_scores",
    "random_scores",
    "taylor_scores",
    "wanda_scores",
]

CRITERIA: tuple[str, ...] = ("magnitude", "wanda", "sparsegpt", "taylor", "random")

#: Criteria that look at the model running.
NEEDS_DATA: frozenset[str] = frozenset({"wanda", "sparsegpt", "taylor"})


def magnitude_scores(weight: Tensor) -> Tensor:
    """``|w|``, float32 (float64 for float64 weights)."""
    return _wide(weight).abs()


def wanda_scores(weight: Tensor, input_norms: Tensor, groups: int = 1) -> Tensor:
    """``|w| * ||x||_2``, the norm of the weight's input channel over all calibration data.

    Scores are compared over the whole layer, as blocks need it; the paper compares them within one output.

    Args:
        weight: ``[out, in/groups]`` or ``[out, in/groups, kh, kw]``.
        input_norms: ``[in]``.
        groups: of the convolution; outputs of group g read the g-th part of the inputs.

    Raises:
        ValueError: the number of norms does not match.

    Example:
        >>> wanda_scores(torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 1.0]))
        tensor([[3., 2.]])

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695),
    section 3.
    """
    out, inputs = weight.shape[0], weight.shape[1]
    if tuple(input_norms.shape) != (inputs * groups,):
        raise ValueError(
            f"wanda_scores: input_norms has shape {list(input_norms.shape)}, expected [{inputs * groups}], one norm "
            "per input channel"
        )
    norms = input_norms.reshape(groups, inputs).repeat_interleave(out // groups, 0)
    return magnitude_scores(weight) * norms.reshape(out, inputs, *[1] * (weight.dim() - 2))


def taylor_scores(weight: Tensor, gradient: Tensor) -> Tensor:
    """``|w * dL/dw|`` of one batch: the first-order change of the loss when the weight becomes zero.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771), equation 8, without
    the square.
    """
    return (_wide(weight) * _wide(gradient)).abs()


def random_scores(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in (0, 1], zero where the weight is zero already; a baseline that other criteria have to beat."""
    scores = 1.0 - torch.rand(weight.shape, generator=generator)
    return torch.where(weight == 0, 0.0, scores.to(weight.device))


def _wide(weight: Tensor) -> Tensor:
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()
