"""Copying a model before it is changed, or one plain layer of it."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn

__all__ = ["copied", "is_one_program", "plain_copy"]

M = TypeVar("M", bound=nn.Module)


def is_one_program(module: nn.Module) -> bool:
    """Whether a module has children that it does not call: a frozen model (``graph/``)."""
    return getattr(module, "is_one_program", False) is True


def copied(model: M, function: str, inplace: bool = False) -> M:
    """A deep copy of ``model``, or itself with ``inplace``, to change; for the public function called ``function``.

    Raises:
        TypeError: the model cannot be copied, the message names the remedy, ``inplace=True``; or a part of it is one
            program, whose layers cannot be replaced.
    """
    for name, module in model.named_modules():
        if is_one_program(module):
            raise TypeError(
                f"{function}: {name or 'the model'} is frozen (fc.freeze), its layers are one program; pass the model "
                "that it was frozen from"
            )
    if inplace:
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{function}: {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); pass inplace=True"
        ) from error


def plain_copy(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """A plain layer with its own parameters, of the same values (a mask's zeros written down), in eval mode."""
    if isinstance(layer, nn.Conv2d):
        copy_: nn.Linear | nn.Conv2d = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            cast(tuple[int, int], layer.stride),
            cast("tuple[int, int] | str", layer.padding),
            cast(tuple[int, int], layer.dilation),
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
    else:
        copy_ = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    with torch.no_grad():
        copy_.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        if layer.bias is not None:
            copy_.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return copy_.eval()
