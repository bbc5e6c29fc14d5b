"""Four-bit weights of convolutions as `state_dict` and files hold them (docs/architecture.md §2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .canonical_w4 import pack_nibbles, unpack_nibbles

__all__ = ["pack_conv_weight", "unpack_conv_weight"]

_MIDDLE = 8


def pack_conv_weight(weight: Tensor) -> Tensor:
    """Weights -8 to 7, int8 ``[out, in/groups, kh, kw]``, as int32 words ``[out, ceil(in/groups * kh * kw / 8)]``.

    A row is the flattened kernel of one output channel, values plus 8 in the order of `pack_nibbles`.

    Example:
        >>> pack_conv_weight(torch.full((1, 1, 1, 2), -7, dtype=torch.int8))
        tensor([[17]], dtype=torch.int32)
    """
    return pack_nibbles(weight.flatten(1).to(torch.int16) + _MIDDLE)


def unpack_conv_weight(words: Tensor, shape: Sequence[int]) -> Tensor:
    """What `pack_conv_weight` packed, int8 of `shape` ``[out, in/groups, kh, kw]``.

    Raises:
        ValueError: the words are not those of such a weight.
    """
    out, inputs = shape[0], math.prod(shape[1:])
    if list(words.shape) != [out, -(-inputs // 8)]:
        raise ValueError(
            f"unpack_conv_weight: `words` has shape {list(words.shape)}, expected {[out, -(-inputs // 8)]} "
            f"for a weight of shape {list(shape)}"
        )
    values = unpack_nibbles(words, inputs).to(torch.int8) - _MIDDLE
    return values.reshape(tuple(shape))
