"""Checking packed weights against their checksums: memory does flip bits, in space more than elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from fastcompress.errors import PackedBlobError
from fastcompress.ops import packing

__all__ = ["packed_layers", "verify"]


def packed_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """The layers of ``model`` that hold a packed blob, by name, each once: ``(name, module, blob)``."""
    for name, module in model.named_modules():
        blob = module._buffers.get("packed")
        if blob is not None:
            yield name, module, blob


def verify(model: nn.Module) -> list[str]:
    """Read every packed blob of ``model`` and compare it with its checksum.

    Returns:
        The names of the layers that were checked, all intact. A model without packed layers gives an empty list.

    Raises:
        TypeError: ``model`` is not a module.
        PackedBlobError: the message names every corrupt layer; load the model again from its checkpoint.

    Example:
        >>> fc.verify(quantized)
        ['encoder.0', 'encoder.2']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"verify: model must be a torch.nn.Module, got {type(model).__name__}")
    names: list[str] = []
    faults: list[str] = []
    for name, _, blob in packed_layers(model):
        names.append(name)
        try:
            packing.check(blob)
        except (RuntimeError, TypeError) as error:
            faults.append(f"layer {name!r}: {error}")
    if faults:
        raise PackedBlobError(
            f"verify: {len(faults)} of {len(names)} packed layers are corrupt; load the model again from its "
            "checkpoint: " + "; ".join(faults)
        )
    return names
