"""The model inside DistributedDataParallel and torch.compile, and its modules by the names they have there."""

from __future__ import annotations

from typing import cast

from torch import nn

__all__ = ["is_compiled", "modules_by_name", "unwrapped"]

_COMPILED = "_orig_mod"  # where torch.compile keeps the module it was given


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without DistributedDataParallel, DataParallel and torch.compile around it."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = cast(nn.Module, model.module)
        elif isinstance(getattr(model, _COMPILED, None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has been applied to the model or to a part of it."""
    return any(_COMPILED in m._modules or getattr(m, "_compiled_call_impl", None) for m in model.modules())


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module of the model inside the wrappers; names do not show where parts were compiled."""
    result: dict[str, nn.Module] = {}
    for name, module in unwrapped(model).named_modules(remove_duplicate=False):
        result.setdefault(".".join(part for part in name.split(".") if part != _COMPILED), module)
    return result
