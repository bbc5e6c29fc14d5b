"""Reordering a layer's channels so that blocks hold weights that matter alike, and pruning loses less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcompress.nn.orders import permuted, restored

from .matrix import as_matrix
from .patterns import Pattern, parse_pattern
from .selection import block_scores, pruned_count

__all__ = ["Permutation", "permutation", "permuted", "restored"]

#: Alternations between outputs and inputs when both are permuted.
_ALTERNATIONS = 2

#: Rounds after which the threshold between kept and pruned blocks is found again.
_THRESHOLD_ROUNDS = 16


@dataclass(frozen=True)
class Permutation:
    """Orders of a layer's channels: entry ``i`` is the channel that goes to place ``i``.

    Attributes:
        input_order: int64 ``[in]``, or None when the inputs stay.
        output_order: int64 ``[out]``, or None when the outputs stay.
        before, after: share of the score that the pattern retains without and with the orders, in [0, 1].
    """

    input_order: Tensor | None
    output_order: Tensor | None
    before: float
    after: float

    @property
    def gain(self) -> float:
        """What the orders add to the retained share; never negative."""
        return self.after - self.before


@torch.no_grad()
def permutation(
    weight: Tensor,
    pattern: Pattern | str,
    sparsity: float,
    *,
    inputs: bool = True,
    outputs: bool = False,
    rounds: int = 2000,
    seed: int = 0,
) -> Permutation:
    """Orders of the channels under which the kept blocks of ``pattern`` hold more of ``|weight|``.

    Channels are sorted by norm, like ones are put together greedily, and then pairs are swapped between blocks as long
    as that helps, for a bounded number of rounds. Orders that help nothing are left out.

    Args:
        weight: the weight, or scores of its shape: ``[out, in]`` or ``[out, in, kh, kw]`` with one group.
        pattern: a block pattern that fits.
        sparsity: pruned fraction, in [0, 1).
        inputs, outputs: which side may be reordered. Every reordered side costs the layer a gather at run time.
        rounds: of the swap search, for each side.
        seed: of the swaps that are tried.

    Raises:
        ValueError: the pattern has no blocks or does not fit, or the sparsity is wrong.

    Example:
        >>> found = permutation(layer.weight, "16x4", 0.8)
        >>> mask = restored(mask_from_scores(permuted(layer.weight.abs(), found.input_order, None), "16x4", 0.8),
        ...                 found.input_order, None)

    Source: Ji et al., "Tetris: Tile-matching the Tremendous Irregular Sparsity" (NeurIPS 2018): reordering that
    makes blocks; the search here is our own.
    """
    pattern = parse_pattern(pattern)
    problem = pattern.fits(weight) or (None if pattern.kind == "block" else f"pattern {str(pattern)!r} has no blocks")
    if problem is not None:
        raise ValueError(f"permutation: {problem}; block patterns such as '16x4' can be permuted")
    scores = weight.detach().double().abs()
    blocks = scores.numel() // (pattern.block_rows * pattern.block_cols)
    keep = blocks - pruned_count(sparsity, blocks, pattern)
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, Tensor | None] = {"in": None, "out": None}
    before = best = _retained(scores, pattern, keep)
    sides = [
        side
        for side, wanted, size in (("out", outputs, pattern.block_rows), ("in", inputs, pattern.block_cols))
        if wanted and size > 1
    ]
    for _ in range(_ALTERNATIONS if len(sides) > 1 else 1):
        for side in sides:
            current = permuted(scores, orders["in"], orders["out"])
            size = pattern.block_cols if side == "in" else pattern.block_rows
            order = _improve(_features(current, pattern, side), size, keep, rounds, generator)
            trial = permuted(current, *((order, None) if side == "in" else (None, order)))
            retained = _retained(trial, pattern, keep)
            if retained > best:
                best = retained
                known = orders[side]
                orders[side] = order if known is None else known[order]
    return Permutation(orders["in"], orders["out"], before, best)


def _retained(scores: Tensor, pattern: Pattern, keep: int) -> float:
    blocks = block_scores(scores, pattern)
    total = float(blocks.sum())
    return float(blocks.flatten().topk(keep).values.sum()) / total if total > 0 else 1.0


def _features(scores: Tensor, pattern: Pattern, side: str) -> Tensor:
    """``[features, channels]``: what each channel adds to the blocks along the other side."""
    if side == "out":
        matrix = as_matrix(scores)
        return matrix.reshape(matrix.shape[0], -1, pattern.block_cols).sum(dim=2).T
    out, inputs = scores.shape[:2]
    rows = scores.reshape(out // pattern.block_rows, pattern.block_rows, inputs, -1).sum(dim=1)
    return rows.permute(0, 2, 1).reshape(-1, inputs)


def _improve(features: Tensor, size: int, keep: int, rounds: int, generator: torch.Generator) -> Tensor:
    """The best order of the channels found, in groups of ``size``."""
    order = _clustered(features, size)
    count = order.numel() // size
    if count < 2:
        return order
    groups = order.reshape(count, size)
    sums = features[:, groups].sum(dim=2)
    threshold = 0.0
    for turn in range(rounds):
        if turn % _THRESHOLD_ROUNDS == 0:
            threshold = _threshold(sums, keep)
        # Disjoint pairs of groups, and one channel of each that might change places.
        shuffled = torch.randperm(count, generator=generator).to(groups.device)
        left, right = shuffled[: count // 2], shuffled[count // 2 : count // 2 * 2]
        pick = torch.randint(size, (2, count // 2), generator=generator).to(groups.device)
        a, b = groups[left, pick[0]], groups[right, pick[1]]
        change = features[:, b] - features[:, a]
        new_left, new_right = sums[:, left] + change, sums[:, right] - change
        # At a fixed threshold the retained score is the sum of what each block has above it, plus a constant.
        value = sum(((s - threshold).clamp_min(0).sum(dim=0) for s in (new_left, new_right)), torch.zeros(()))
        value = value - sum(((sums[:, g] - threshold).clamp_min(0).sum(dim=0) for g in (left, right)), torch.zeros(()))
        good = value > 1e-12 * max(threshold, 1e-300)
        groups[left[good], pick[0][good]], groups[right[good], pick[1][good]] = b[good], a[good]
        sums[:, left[good]], sums[:, right[good]] = new_left[:, good], new_right[:, good]
    return groups.flatten()


def _threshold(sums: Tensor, keep: int) -> float:
    """Between the weakest kept block and the strongest pruned one."""
    if keep >= sums.numel():
        return 0.0
    edge = sums.flatten().topk(keep + 1).values[-2:]
    return float(edge.mean())


def _clustered(features: Tensor, size: int) -> Tensor:
    """Strongest channel first, joined by the channels most like it; then the strongest of the rest, and so on."""
    norms = features.norm(dim=0)
    order = norms.argsort(descending=True, stable=True)
    unit = (features / norms.clamp_min(1e-30))[:, order]
    free = torch.ones(order.numel(), dtype=torch.bool, device=order.device)
    chosen: list[Tensor] = []
    for position in range(order.numel()):
        if not bool(free[position]):
            continue
        likeness = (unit[:, position] @ unit).masked_fill(~free, -torch.inf)
        likeness[position] = torch.inf
        # Stable, so that among equals the stronger channel comes first.
        members = likeness.argsort(descending=True, stable=True)[:size]
        free[members] = False
        chosen.append(order[members])
    return torch.cat(chosen)
