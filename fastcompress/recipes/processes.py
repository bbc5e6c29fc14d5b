"""The processes of a run under torchrun; one where there are no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.speed import Timer

__all__ = [
    "averaged",
    "barrier",
    "everywhere",
    "first_timer",
    "from_first",
    "is_first",
    "rank",
    "share_buffers",
    "world_size",
    "wrapped",
]


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


def everywhere(true: bool) -> bool:
    """Whether something holds in all processes; each must ask."""
    if world_size() == 1:
        return true
    found = torch.tensor(float(true), device=_device())
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
    return bool(found)


def averaged(values: Mapping[str, float]) -> dict[str, float]:
    """Means over the processes, by name; the names must be the same in all of them."""
    if world_size() == 1 or not values:
        return dict(values)
    found = torch.tensor(list(values.values()), dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(found)
    return dict(zip(values, (found / world_size()).tolist(), strict=True))


def from_first(values: Sequence[float]) -> list[float]:
    """The first process's numbers, in all of them; equally many in each."""
    if world_size() == 1:
        return list(values)
    found = torch.tensor(list(values), dtype=torch.float64, device=_device())
    torch.distributed.broadcast(found, 0)
    return [float(value) for value in found]


def first_timer(timer: Timer) -> Timer:
    """A timer that gives every process what the first one measures, so that all choose the same layers."""

    def measured(calls: Mapping[str, Callable[[], Any]]) -> Mapping[str, float]:
        if world_size() == 1:
            return timer(calls)
        seconds = timer(calls) if is_first() else {}
        return dict(zip(calls, from_first([seconds.get(name, 0.0) for name in calls]), strict=True))

    return measured


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers: BatchNorm's statistics are each process's own after a step."""
    if world_size() > 1:
        for buffer in model.buffers():
            # Through a copy: a backend may not take every dtype or layout as it is.
            sent: Tensor = buffer.detach().contiguous().clone()
            torch.distributed.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, 0)
            buffer.copy_(sent)


def _device() -> torch.device:
    """Where tensors must be for the backend to send them."""
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
