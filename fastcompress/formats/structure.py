"""Where a model keeps its tensors, and how tensors and modules are put in place by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastcompress.formats.registry import owns_tensors

__all__ = ["Replaced", "Slot", "join", "put_module", "put_tensor", "slots", "unsaved_buffers"]

#: Modules (by name) that take the place of a model's own; None stands for one that owns its tensors.
Replaced = Mapping[str, nn.Module | None]


def join(prefix: str, key: str) -> str:
    """``prefix.key``, or ``key`` alone below the root."""
    return f"{prefix}.{key}" if prefix else key


@dataclass(frozen=True)
class Slot:
    """A place for one parameter or persistent buffer; ``tensor`` is what lies there now (None: an absent bias)."""

    module: str
    key: str
    is_parameter: bool
    tensor: Tensor | None

    @property
    def name(self) -> str:
        """The key in the state dict."""
        return join(self.module, self.key)


def _walk(name: str, module: nn.Module, replaced: Replaced) -> Iterator[tuple[str, nn.Module]]:
    present = replaced.get(name, module)
    if present is None or owns_tensors(present):
        return
    yield name, present
    for key, child in present._modules.items():
        if child is not None:
            yield from _walk(join(name, key), child, replaced)


def slots(model: nn.Module, replaced: Replaced | None = None) -> Iterator[Slot]:
    """All slots outside quantized layers, with ``replaced`` modules taken for those of the model."""
    for name, module in _walk("", model, replaced or {}):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield Slot(name, key, True, parameter)
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield Slot(name, key, False, buffer)


def unsaved_buffers(model: nn.Module, replaced: Replaced) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are in no state dict, by name."""
    for name, module in _walk("", model, replaced):
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None:
                yield join(name, key), buffer


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name`` (not the root)."""
    parent, _, key = name.rpartition(".")
    model.get_submodule(parent)._modules[key] = module


def put_tensor(model: nn.Module, slot: Slot, tensor: Tensor) -> None:
    """Put a new tensor object into ``slot``."""
    module = model.get_submodule(slot.module)
    if slot.is_parameter:
        module._parameters[slot.key] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
    else:
        module._buffers[slot.key] = tensor
