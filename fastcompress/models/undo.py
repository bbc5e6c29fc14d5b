"""Putting a model back together after an exception: its modules, classes and hooks as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["undone_on_error"]

_KEPT = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """If the block raises, every module below ``model`` gets back its class, its entries and its forward pre-hooks.

    Values of tensors are not kept: the block may only change what hangs where, until nothing can fail any more.
    """
    saved: list[tuple[nn.Module, type[nn.Module], dict[str, dict[Any, Any]]]] = [
        (module, type(module), {name: dict(module.__dict__[name]) for name in _KEPT}) for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, kind, entries in saved:
            module.__class__ = kind
            for name, before in entries.items():
                entry: dict[Any, Any] = module.__dict__[name]
                entry.clear()
                entry.update(before)
        raise
