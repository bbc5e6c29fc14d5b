"""Copying a model before it is changed."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

__all__ = ["copied"]

M = TypeVar("M", bound=nn.Module)


def copied(model: M, function: str) -> M:
    """A deep copy of ``model``, for the public function called ``function``.

    Raises:
        TypeError: the model cannot be copied; the message names the remedy, ``inplace=True``.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{function}: {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); pass inplace=True"
        ) from error
