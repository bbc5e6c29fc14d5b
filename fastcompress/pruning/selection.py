"""From scores to masks: which blocks of a pattern are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .matrix import as_matrix, from_matrix
from .patterns import Pattern, parse_pattern

__all__ = ["block_scores", "lowest", "mask_from_blocks", "mask_from_scores", "pruned_count"]

#: How far a sparsity may be from the 1 - N/M of an N:M pattern: "1:3" is usually written 0.67.
_NM_TOLERANCE = 0.005


def pruned_count(sparsity: float, blocks: int, pattern: Pattern) -> int:
    """How many of ``blocks`` blocks are pruned: ``round(sparsity * blocks)``.

    Raises:
        ValueError: a sparsity outside [0, 1), or not the one an N:M pattern has.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity!r}")
    fixed = pattern.fixed_sparsity
    if fixed is not None and abs(sparsity - fixed) > _NM_TOLERANCE:
        raise ValueError(
            f"pattern {str(pattern)!r} always has sparsity {fixed:.4g}, got {sparsity!r}; pass sparsity={fixed:.4g}"
        )
    return round((sparsity if fixed is None else fixed) * blocks)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Which ``count`` entries of ``scores`` are lowest, as a bool tensor; among equals the first ones.

    Raises:
        ValueError: NaN in the scores.
    """
    flat = scores.flatten()
    if bool(torch.isnan(flat).any()):
        raise ValueError("scores hold NaN, which cannot be ranked; check the weights and the calibration data")
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    chosen = flat < threshold
    equal = (flat == threshold).nonzero().flatten()
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def block_scores(scores: Tensor, pattern: Pattern) -> Tensor:
    """float64 ``[out/BH, K/BW]``: the sum of the scores in each block of the weight-shaped ``scores``."""
    matrix = as_matrix(scores).double()
    rows, cols = pattern.block_rows, pattern.block_cols
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // cols, cols).sum(dim=(1, 3))


def mask_from_blocks(keep: Tensor, pattern: Pattern, shape: Sequence[int]) -> Tensor:
    """The weight-shaped mask of ``keep``, a bool per block ``[out/BH, K/BW]``."""
    matrix = keep.repeat_interleave(pattern.block_rows, 0).repeat_interleave(pattern.block_cols, 1)
    return from_matrix(matrix, shape)


def mask_from_scores(scores: Tensor, pattern: Pattern | str, sparsity: float) -> Tensor:
    """The mask that keeps the blocks with the highest scores; exactly ``round(sparsity * blocks)`` are pruned.

    A block's score is the sum over its elements. Among equals the first in the order of the matrix are pruned. N:M
    keeps the N highest of every M consecutive inputs.

    Args:
        scores: importance of each weight, of the weight's shape (`as_matrix`).
        pattern: a `Pattern` or its name; must fit the shape.
        sparsity: pruned fraction, in [0, 1).

    Returns:
        bool, the shape of ``scores``; True is kept.

    Raises:
        ValueError: the pattern does not fit, a wrong sparsity, or NaN scores.

    Example:
        >>> mask_from_scores(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), "1x2", 0.5)
        tensor([[False, False,  True,  True]])
    """
    pattern = parse_pattern(pattern)
    problem = pattern.fits(scores)
    if problem is not None:
        raise ValueError(f"mask_from_scores: {problem}; scores have shape {list(scores.shape)}")
    if pattern.kind == "nm":
        pruned_count(sparsity, 0, pattern)
        groups = as_matrix(scores).reshape(-1, pattern.m)
        if bool(torch.isnan(groups).any()):
            raise ValueError("scores hold NaN, which cannot be ranked; check the weights and the calibration data")
        # Ascending and stable, so that among equals the first are pruned here as well.
        order = groups.argsort(dim=1, stable=True)
        keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, pattern.m - pattern.n :], True)
        return from_matrix(keep.reshape(scores.shape[0], -1), scores.shape)
    blocks = block_scores(scores, pattern)
    return mask_from_blocks(~lowest(blocks, pruned_count(sparsity, blocks.numel(), pattern)), pattern, scores.shape)
