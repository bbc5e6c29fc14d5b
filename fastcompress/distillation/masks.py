"""Which positions of a batch count in a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .loss import DistillationLoss

__all__ = ["kept_positions"]

_AUTOMATIC = "attention_mask"


def kept_positions(loss: DistillationLoss, batch: Any, student: Tensor) -> Tensor | None:
    """True at the positions that count for ``loss``, from the entry of the batch that it names; None if all do.

    Raises:
        ValueError: the loss names an entry that the batch does not have, or of another shape.
    """
    shape = loss.positions(student)
    entries = batch if isinstance(batch, Mapping) else {}
    if loss.mask is None:
        mask = entries.get(_AUTOMATIC)
        if isinstance(mask, Tensor) and student.dim() > 2 and tuple(mask.shape) == shape:
            return mask.to(student.device) != 0
        return None
    owner = type(loss).__name__
    mask = entries.get(loss.mask)
    if not isinstance(mask, Tensor):
        has = f"has {', '.join(map(repr, entries)) or 'nothing'}" if isinstance(batch, Mapping) else "is no dict"
        raise ValueError(
            f"{owner}: mask {loss.mask!r} must be a tensor in the batch, which {has}; use mask=None for all"
        )
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"{owner}: mask {loss.mask!r} has shape {list(mask.shape)}, the student's tensor {list(student.shape)}; "
            + ("this tensor has no positions to mask" if shape is None else f"it must be {list(shape)}")
        )
    mask = mask.to(student.device)
    return mask != 0 if loss.ignore_index is None else mask != loss.ignore_index
