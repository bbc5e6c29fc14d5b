"""Agreement between the processes of data-parallel training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["mean_over_ranks", "several_ranks"]


def several_ranks() -> bool:
    """Whether training runs in more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all processes; the tensors themselves where there is one process only.

    Every process must call it, with tensors of the same shapes.
    """
    if not several_ranks():
        return list(tensors)
    # One message for all of a kind, instead of one for each tensor.
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        kinds[tensor.device, tensor.dtype].append(index)
    result = list(tensors)
    for indices in kinds.values():
        bucket = torch.cat([tensors[index].flatten() for index in indices])
        dist.all_reduce(bucket)
        bucket /= dist.get_world_size()
        parts = bucket.split([tensors[index].numel() for index in indices])
        for index, part in zip(indices, parts, strict=True):
            result[index] = part.view(tensors[index].shape)
    return result
