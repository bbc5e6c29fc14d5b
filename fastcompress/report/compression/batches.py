"""Batches of any size from the one that a result carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_size", "repeated"]


def batch_size(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor; ``ValueError`` where there is none."""
    if isinstance(batch, Tensor) and batch.dim() > 0 and batch.shape[0] > 0:
        return batch.shape[0]
    values = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    for value in values:
        try:
            return batch_size(value)
        except ValueError:
            continue
    raise ValueError(
        "compression_report: example_inputs holds no tensor with samples in its first dimension; give batches=() to "
        "leave the measurement of whole models out"
    )


def repeated(batch: Any, size: int) -> Any:
    """``batch`` cut or repeated to ``size`` samples; tensors without the batch's first dimension stay as they are.

    Example:
        >>> repeated(torch.tensor([1, 2]), 3).tolist()
        [1, 2, 1]
    """
    return _repeated(batch, batch_size(batch), size)


def _repeated(value: Any, have: int, size: int) -> Any:
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != have:
            return value
        return value[torch.arange(size, device=value.device) % have]
    if isinstance(value, Mapping):
        return {key: _repeated(item, have, size) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_repeated(item, have, size) for item in value]
    return value
