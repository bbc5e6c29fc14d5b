"""Orders of a weight's channels: the permutation under which a pruned weight falls into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .mask import mask_module

__all__ = ["NATURAL", "Orders", "checked_order", "gathered", "mask_orders", "permuted", "reordered_name", "restored"]

#: ``(input_order, output_order)``: entry ``i`` is the channel that goes to place ``i``; None where channels stay.
Orders: TypeAlias = tuple[Tensor | None, Tensor | None]

NATURAL: Orders = (None, None)


def permuted(tensor: Tensor, input_order: Tensor | None, output_order: Tensor | None) -> Tensor:
    """A weight-shaped tensor ``[out, in, …]`` in the given orders."""
    if output_order is not None:
        tensor = tensor.index_select(0, output_order.to(tensor.device))
    return tensor if input_order is None else tensor.index_select(1, input_order.to(tensor.device))


def restored(tensor: Tensor, input_order: Tensor | None, output_order: Tensor | None) -> Tensor:
    """What `permuted` made this tensor from."""
    inverse = [None if order is None else torch.argsort(order) for order in (input_order, output_order)]
    return permuted(tensor, inverse[0], inverse[1])


def gathered(x: Tensor, dim: int, order: Tensor) -> Tensor:
    """The channels of `x` along `dim` (-1, or -3 of an image) in another order, in the memory format of `x`."""
    if dim == -3 and not x.is_contiguous():
        last = x.movedim(-3, -1)
        if last.is_contiguous():
            return last.index_select(-1, order).movedim(-1, -3)
    return x.index_select(dim, order)


def mask_orders(module: nn.Module, weight: Tensor | None = None) -> Orders:
    """The orders of the mask on `module`, as far as they fit `weight` (by default, the module's own)."""
    mask = mask_module(module)
    if mask is None:
        return NATURAL
    shape = mask.mask.shape if weight is None else weight.shape
    inputs, outputs = mask.input_order, mask.output_order
    return (
        inputs if inputs is not None and inputs.numel() == shape[1] else None,
        outputs if outputs is not None and outputs.numel() == shape[0] else None,
    )


def checked_order(what: str, order: object, channels: int) -> Tensor:
    """`order` itself; `what` is for messages.

    Raises:
        ValueError: it is no permutation of so many channels.
    """
    wanted = f"an int64 tensor that holds each number from 0 to {channels - 1} once"
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.shape != (channels,):
        got = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise ValueError(f"{what} must be {wanted}, got {got}")
    if not torch.equal(order.sort().values, torch.arange(channels, device=order.device)):
        raise ValueError(f"{what} must be {wanted}; it repeats some and lacks others")
    return order


def reordered_name(orders: Sequence[object]) -> str:
    """Which channels have another order: ``"inputs"``, ``"outputs"``, ``"inputs and outputs"``, or ``""``."""
    names = [name for name, order in zip(("inputs", "outputs"), orders, strict=True) if order is not None]
    return " and ".join(names)
