"""The processes of a run under torchrun; one where there are no others."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["barrier", "is_first", "rank", "world_size", "wrapped"]


def world_size() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if _running() else 1


def rank() -> int:
    """This process's number."""
    return torch.distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        torch.distributed.barrier()


def wrapped(model: nn.Module) -> nn.Module:
    """The model as the forward pass of a step calls it: averaged over the processes, if there are several."""
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices)


def _running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
