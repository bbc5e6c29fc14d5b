"""How much memory a model's tensors take."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["size_bytes"]


def _storage(tensor: Tensor) -> tuple[object, int]:
    storage = tensor.untyped_storage()
    return (tensor.device, storage.data_ptr() if not tensor.is_meta else id(storage)), storage.nbytes()


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers (packed weights are buffers), each storage counted once.

    Example:
        >>> size_bytes(nn.Linear(10, 10))
        440
    """
    storages = dict(_storage(tensor) for tensor in (*model.parameters(), *model.buffers()) if tensor.numel())
    return sum(storages.values())
