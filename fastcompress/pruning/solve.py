"""One layer's mask from what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcompress.models.hessian import inverse_factor

from .evidence import Evidence
from .layers import PrunableLayer
from .matrix import from_matrix
from .patterns import Pattern
from .permute import permutation, permuted, restored
from .selection import mask_from_scores
from .sparsegpt import sparsegpt

__all__ = ["Solved", "retained_share", "solve"]


@dataclass(frozen=True)
class Solved:
    """A layer's new mask.

    Attributes:
        mask: bool, the weight's shape.
        retained: share of the score that is kept.
        weight: updated weights, or None where they stay.
        input_order, output_order: the permutation under which the mask has its pattern.
        gain: what that added to the retained share; None without one.
    """

    mask: Tensor
    retained: float
    weight: Tensor | None = None
    input_order: Tensor | None = None
    output_order: Tensor | None = None
    gain: float | None = None


def retained_share(scores: Tensor, mask: Tensor) -> float:
    """Kept share of the scores, in [0, 1]; 1 when all scores are zero."""
    scores = scores.double()
    total = float(scores.sum())
    return float((scores * mask).sum()) / total if total > 0 else 1.0


@torch.no_grad()
def solve(
    layer: PrunableLayer,
    known: Evidence,
    pattern: Pattern,
    sparsity: float,
    permute: tuple[bool, bool] = (False, False),
    seed: int = 0,
) -> Solved:
    """The mask of ``layer`` for this pattern and sparsity.

    Args:
        permute: whether (inputs, outputs) may be reordered; grouped convolutions never are. The order of an earlier
            mask stays, as that mask has its pattern in no other.

    Raises:
        ValueError: the Hessian cannot be inverted.
    """
    weight, hessian, scores = layer.weight, known.hessian, known.scores
    inputs, outputs = layer.orders
    wanted = any(permute) and layer.groups == 1 and inputs is None and outputs is None
    if scores is None:
        assert hessian is not None, "evidence without a problem has scores or a Hessian"
        scores = _saliency(weight, hessian) if wanted else weight
    gain = None
    if wanted:
        found = permutation(scores, pattern, sparsity, inputs=permute[0], outputs=permute[1], seed=seed)
        inputs, outputs, gain = found.input_order, found.output_order, found.gain
    if hessian is None:
        mask = restored(mask_from_scores(permuted(scores, inputs, outputs), pattern, sparsity), inputs, outputs)
        return Solved(mask, retained_share(scores, mask), None, inputs, outputs, gain)
    if inputs is not None:
        columns = _columns(inputs, hessian.shape[0])
        hessian = hessian[columns][:, columns]
    earlier = None if layer.mask is None else permuted(layer.mask, inputs, outputs)
    solution = sparsegpt(permuted(weight, inputs, outputs), hessian, pattern, sparsity, mask=earlier)
    return Solved(
        restored(solution.mask, inputs, outputs),
        retained_share(solution.saliency, solution.mask),
        restored(solution.weight, inputs, outputs),
        inputs,
        outputs,
        gain,
    )


def _columns(input_order: Tensor, columns: int) -> Tensor:
    """The order of a matrix's columns (tap, channel) when the channels are reordered."""
    channels = input_order.numel()
    taps = torch.arange(columns // channels, device=input_order.device)
    return (taps[:, None] * channels + input_order).flatten()


def _saliency(weight: Tensor, hessian: Tensor) -> Tensor:
    """w² / [H^-1]_jj, which unlike SparseGPT's own does not depend on the order of the columns."""
    factor = inverse_factor(hessian)
    diagonal = factor.square().sum(dim=0)
    matrix = diagonal.reciprocal().expand(weight.shape[0], -1)
    return weight.float().square() * from_matrix(matrix, weight.shape)
