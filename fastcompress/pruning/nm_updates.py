"""Masks of N:M patterns that change while the network trains: group by group."""

from __future__ import annotations

import torch
from torch import Tensor

from .matrix import as_matrix, from_matrix
from .patterns import Pattern
from .selection import lowest

__all__ = ["narrowed_groups", "regrown_groups"]


def narrowed_groups(scores: Tensor, mask: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """`mask_updates.narrowed` for an N:M pattern."""
    groups, alive = _groups(scores, pattern).double(), _groups(mask, pattern)
    kept = torch.where(alive, groups, 0.0)
    if bool(torch.isnan(kept).any()):
        raise ValueError("scores hold NaN, which cannot be ranked; check the weights and the training data")
    order = torch.where(alive, groups, -torch.inf).argsort(dim=1, stable=True)[:, : pattern.m - pattern.n]
    # What a group loses; groups that have N left, or fewer, lose nothing and come first.
    loss = kept.gather(1, order).sum(dim=1)
    loss = torch.where(alive.sum(dim=1) > pattern.n, loss, -torch.inf)
    fixed = pattern.fixed_sparsity
    assert fixed is not None, "the caller has an N:M pattern"
    chosen = lowest(loss, round(min(1.0, sparsity / fixed) * groups.shape[0]))
    lost = torch.zeros_like(alive).scatter_(1, order, True) & chosen[:, None]
    return mask & ~_weight(lost, mask)


def regrown_groups(scores: Tensor, gradient: Tensor, mask: Tensor, pattern: Pattern, share: float) -> Tensor:
    """`mask_updates.regrown` for an N:M pattern."""
    groups, alive = _groups(scores, pattern).double(), _groups(mask, pattern)
    wanted = _groups(gradient, pattern).double().abs()
    weakest = torch.where(alive, groups, torch.inf)
    movable = alive.any(dim=1) & ~alive.all(dim=1)
    count = min(round(share * int(alive.sum())), int(movable.sum()))
    chosen = lowest(torch.where(movable, weakest.amin(dim=1), torch.inf), count)
    drop = _first(weakest, chosen)
    staying = alive & ~drop
    grow = _first(torch.where(staying, torch.inf, -wanted), chosen)
    return _weight(staying | grow, mask)


def _first(values: Tensor, rows: Tensor) -> Tensor:
    """A bool per value: the lowest of each of the ``rows``."""
    return (
        torch.zeros_like(values, dtype=torch.bool).scatter_(1, values.argmin(dim=1, keepdim=True), True) & rows[:, None]
    )


def _groups(tensor: Tensor, pattern: Pattern) -> Tensor:
    return as_matrix(tensor).reshape(-1, pattern.m)


def _weight(groups: Tensor, like: Tensor) -> Tensor:
    return from_matrix(groups.reshape(like.shape[0], -1), like.shape)
