"""Integers of four and eight bits in 32-bit words, unpacked without wide copies.

All formats here put the first value into the lowest bits of a word, so on a little-endian machine a word's bytes are
in the order of its values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcompress.ops.canonical_w4 import unpack_nibbles

__all__ = ["regroup_inputs", "unpack_words"]


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """Unsigned values of int32 words: ``[rows, n]`` to uint8 ``[rows, n * 32 / bits]``, for 4 and 8 bits."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    return unpack_nibbles(words, 2 * octets.shape[1])


def regroup_inputs(g_idx: Tensor, group_size: int) -> Tensor | None:
    """The order of the inputs, int64 ``[in]``, that puts those of one group next to each other.

    Args:
        g_idx: int32 ``[in]``, the group of each input.
        group_size: inputs of each group; the last one has what is left.

    Returns:
        None if the groups are neighbouring inputs already.

    Raises:
        ValueError: a group that does not exist, or one with too many or too few inputs.
    """
    inputs = g_idx.numel()
    groups = -(-inputs // group_size)
    wide = g_idx.to(torch.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high >= groups:
        raise ValueError(f"holds {low if low < 0 else high}, the {groups} groups are numbered from 0 to {groups - 1}")
    natural = torch.arange(inputs) // group_size
    if torch.equal(wide, natural):
        return None
    counts, expected = torch.bincount(wide, minlength=groups), torch.bincount(natural, minlength=groups)
    if not torch.equal(counts, expected):
        group = int((counts != expected).nonzero()[0])
        raise ValueError(
            f"gives group {group} {int(counts[group])} inputs, the group size asks for {int(expected[group])}; groups "
            "of unequal size are not supported"
        )
    return torch.argsort(wide, stable=True)
