"""Putting finished modules into a model: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["replace_modules", "restore_modules"]

#: (parent, key, what was there before)
Undo = list[tuple[nn.Module, str, nn.Module]]


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Undo:
    """Put each replacement wherever its key stands below ``model``; returns what `restore_modules` needs.

    The root itself cannot be replaced from inside; the caller looks it up in ``replacements``.
    """
    undo: Undo = []
    try:
        for parent in list(model.modules()):
            for key, child in list(parent._modules.items()):
                if child is not None and child in replacements:
                    undo.append((parent, key, child))
                    parent._modules[key] = replacements[child]
    except BaseException:
        restore_modules(undo)
        raise
    return undo


def restore_modules(undo: Undo) -> None:
    """Take back what `replace_modules` did."""
    for parent, key, child in reversed(undo):
        parent._modules[key] = child
