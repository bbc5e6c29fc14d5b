"""From one mask of a training network to the next: fewer blocks, or the same number elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .nm_updates import narrowed_groups, regrown_groups
from .patterns import Pattern
from .selection import block_scores, lowest, mask_from_blocks

__all__ = ["narrowed", "narrowed_together", "regrown", "widened"]


def narrowed(scores: Tensor, mask: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """``mask`` without its least important blocks, so that ``round(sparsity * blocks)`` are pruned; none comes back.

    Args:
        scores: importance of each weight, may be negative; what it says of masked weights does not matter.
        mask: bool, the shape of ``scores``; True is kept.
        pattern: must fit. An N:M pattern takes whole groups of M, ``round(sparsity / (1 - N/M) * groups)`` of them,
            those that lose the least.
        sparsity: pruned fraction, in [0, 1). A mask that has pruned more already stays.

    Raises:
        ValueError: NaN in the scores of kept weights.
    """
    if pattern.kind == "nm":
        return narrowed_groups(scores, mask, pattern, sparsity)
    units = _units(scores, mask, pattern)
    return mask & mask_from_blocks(~lowest(units, round(sparsity * units.numel())), pattern, mask.shape)


def narrowed_together(
    scores: Sequence[Tensor], masks: Sequence[Tensor], pattern: Pattern, sparsity: float
) -> list[Tensor]:
    """`narrowed` with one threshold for several weights, on block scores over their weight's mean magnitude.

    Every weight keeps its best block.
    """
    parts: list[Tensor] = []
    for score, mask in zip(scores, masks, strict=True):
        units = _units(score, mask, pattern)
        alive = units > -torch.inf
        units = units / units[alive].abs().mean().clamp_min(1e-300)
        units.view(-1)[units.argmax()] = torch.inf
        parts.append(units.cpu())
    everything = torch.cat([part.flatten() for part in parts])
    count = min(round(sparsity * everything.numel()), everything.numel() - len(parts))
    dead = lowest(everything, count).split([part.numel() for part in parts])
    return [
        mask & mask_from_blocks(~lost.view(part.shape), pattern, mask.shape).to(mask.device)
        for mask, part, lost in zip(masks, parts, dead, strict=True)
    ]


def regrown(scores: Tensor, gradient: Tensor, mask: Tensor, pattern: Pattern, share: float) -> Tensor:
    """A mask with as many kept blocks, ``round(share * kept)`` of which moved to where the gradient is large.

    The least important blocks go; then those with the largest summed ``|gradient|`` come, out of all that are pruned,
    the ones that just went among them.

    Args:
        scores: importance of each weight; only that of kept weights matters.
        gradient: dL/dw, dense.
        mask: bool; True is kept.
        pattern: must fit. With an N:M pattern a weight moves within its group of M, one at most in each.
        share: fraction of the kept blocks, in [0, 1].

    Raises:
        ValueError: NaN in the scores of kept weights or in the gradient.

    Source: Evci et al., "Rigging the Lottery: Making All Tickets Winners" (arXiv 1911.11134), algorithm 1.
    """
    if pattern.kind == "nm":
        return regrown_groups(scores, gradient, mask, pattern, share)
    units = _units(scores, mask, pattern)
    alive = units > -torch.inf
    count = round(share * int(alive.sum()))
    drop = lowest(torch.where(alive, units, torch.inf), count)
    staying = alive & ~drop
    wanted = block_scores(gradient.abs(), pattern)
    grow = lowest(torch.where(staying, torch.inf, -wanted), count)
    kept = mask & mask_from_blocks(staying | (drop & grow), pattern, mask.shape)
    return kept | mask_from_blocks(grow & ~alive, pattern, mask.shape)


def widened(scores: Tensor, mask: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """``mask`` with its most important pruned blocks kept again, so that ``round(sparsity * blocks)`` are pruned.

    Args:
        scores: importance of each weight; only that of pruned weights matters.
        mask: bool; True is kept. One that has pruned less already stays.
        pattern: must fit, and not be N:M.
        sparsity: pruned fraction, in [0, 1).

    Raises:
        ValueError: NaN in the scores.
    """
    alive = block_scores(mask.float(), pattern) > 0
    units = torch.where(alive, torch.inf, block_scores(scores, pattern))
    return mask | mask_from_blocks(~lowest(units, round(sparsity * units.numel())), pattern, mask.shape)


def _units(scores: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """float64 score of each block; -inf where it is pruned altogether."""
    alive = block_scores(mask.float(), pattern) > 0
    return torch.where(alive, block_scores(torch.where(mask, scores, 0.0), pattern), -torch.inf)
