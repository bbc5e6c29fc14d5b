"""Channels-last modules, which torch can make but its type hints do not know."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["channels_last"]

M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Move a module's convolution weights to channels-last, in place, and return it."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
