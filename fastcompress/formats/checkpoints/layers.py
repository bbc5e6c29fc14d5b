"""From unpacked integers, scales and zero points to canonical layers; shared by all formats."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import StoredLayer
from fastcompress.formats.checkpoints.words import unpack_words
from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["eight_bit", "four_bit", "group_count"]

_MIDDLE = 8


def group_count(inputs: int, group_size: int | None) -> tuple[int, int]:
    """The group size in inputs (None: all of them), at most `inputs`, and the number of groups."""
    size = inputs if group_size is None else min(group_size, inputs)
    return size, -(-inputs // size)


def four_bit(
    words: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    inputs: int,
    group_size: int,
    *,
    order: Tensor | None = None,
    input_mode: str = "dynamic_16bit",
) -> StoredLayer:
    """A layer from canonical words, its inputs put into `order`; zero points that are all 8 are left out."""
    if zero is not None and bool((zero == _MIDDLE).all()):
        zero = None
    if order is not None:
        words = pack_nibbles(unpack_words(words, 4)[:, order])
    canonical = W4Canonical(words, scale, bias, inputs, group_size, input_mode, zero)
    return StoredLayer(canonical, order)


def eight_bit(
    values: Tensor, scale: Tensor, bias: Tensor | None, group_size: int, *, order: Tensor | None = None
) -> StoredLayer:
    """A weight-only layer from int8 values."""
    if order is not None:
        values = values[:, order]
    return StoredLayer(W8Canonical(values.to(torch.int8).contiguous(), scale, bias, group_size), order)
