"""Giving a pruned layer some of its weights back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mask import mask_module, original_weight, permutation_of
from .mask_updates import widened
from .patterns import Pattern, parse_pattern
from .permute import permuted, restored

__all__ = ["relax_mask"]


@torch.no_grad()
def relax_mask(module: nn.Module, pattern: Pattern | str, sparsity: float, scores: Tensor) -> None:
    """Lower the sparsity of ``module``'s mask in place: the pruned blocks with the highest scores come back, at zero.

    What the module computes does not change; training can use the weights from now on.

    Args:
        module: carries a mask of this pattern.
        pattern: a pattern or its name; N:M goes to sparsity 0 only.
        sparsity: pruned fraction, in [0, 1), not above what it is.
        scores: importance of each weight, of the weight's shape.

    Raises:
        ValueError: no mask, an N:M pattern with a sparsity above 0, or scores of another shape.

    Example:
        >>> relax_mask(layer, "4x4", 0.8, dense_layer.weight.abs())
    """
    found = mask_module(module)
    if found is None:
        raise ValueError(f"relax_mask: {type(module).__name__} has no mask")
    if scores.shape != found.mask.shape:
        raise ValueError(
            f"relax_mask: scores must have the weight's shape {list(found.mask.shape)}, got {list(scores.shape)}"
        )
    pattern = parse_pattern(pattern)
    if pattern.kind == "nm" and sparsity > 0.0:
        raise ValueError(f"relax_mask: pattern {pattern} has one sparsity only; relax it to 0, got {sparsity:g}")
    order = permutation_of(module)
    if sparsity <= 0.0:
        mask = torch.ones_like(found.mask)
    else:
        mask = restored(widened(permuted(scores, *order), permuted(found.mask, *order), pattern, sparsity), *order)
    original_weight(module).masked_fill_(mask & ~found.mask, 0.0)
    found.mask.copy_(mask)
