"""The optimizer's memory of weights that are pruned, or that go back to earlier values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["clear_moments", "forget"]


@torch.no_grad()
def clear_moments(optimizer: torch.optim.Optimizer, parameter: Tensor, where: Tensor) -> None:
    """Zero ``parameter``'s momentum, second moments and the like where ``where`` is True, in place."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), 0.0)


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Remove the state of ``parameters``, as if the optimizer had never stepped them."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
