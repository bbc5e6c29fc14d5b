"""AWQ checkpoints of version GEMM (AutoAWQ).

``qweight`` int32 ``[in, out / 8]`` and ``qzeros`` int32 ``[groups, out / 8]`` pack along the outputs; nibble i of word
c, lowest bits first, holds output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]. ``scales`` ``[groups, out]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import StoredLayer
from fastcompress.formats.checkpoints.layers import four_bit, group_count
from fastcompress.formats.checkpoints.settings import Settings
from fastcompress.formats.checkpoints.table import FLOATS, TensorTable
from fastcompress.formats.checkpoints.words import unpack_words
from fastcompress.ops.canonical_w4 import pack_nibbles

__all__ = ["read_awq"]

_INT32 = (torch.int32,)
_ORPHANS = ("qweight", "qzeros", "scales", "g_idx")
#: The nibble that holds output 0, 1, 2 and so on.
_NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)


def _outputs(words: Tensor) -> Tensor:
    """Values ``[rows, out]`` of words ``[rows, out / 8]``, uint8 as a view of the outputs' order."""
    nibbles = unpack_words(words, 4).view(words.shape[0], -1, 8)
    return nibbles[:, :, list(_NIBBLE_OF_OUTPUT)].reshape(words.shape[0], -1)


def _layer(table: TensorTable, module: str, chosen_size: int | None) -> StoredLayer:
    qweight = table.take(module + ".qweight", _INT32, (None, None))
    inputs, out = qweight.shape[0], qweight.shape[1] * 8
    group_size, groups = group_count(inputs, chosen_size)
    scale = table.take_finite(module + ".scales", FLOATS, (groups, out)).t().contiguous()
    qzeros = table.take(module + ".qzeros", _INT32, (groups, out // 8))
    zero = _outputs(qzeros).t().contiguous()
    words = pack_nibbles(_outputs(qweight).t().contiguous())
    return four_bit(words, scale, zero, table.take_bias(module, out), inputs, group_size)


def read_awq(table: TensorTable, settings: Settings) -> tuple[dict[str, StoredLayer], dict[str, Tensor]]:
    """Take all layers out of the table; returns them and the other tensors.

    Raises:
        ValueError: a setting is wrong. CheckpointError: a tensor is.

    Source: Lin et al. 2024, "AWQ", arXiv 2306.00978; the layout is AutoAWQ's.
    """
    settings.bits("bits", "w_bit", allowed=(4,))
    settings.string("version", "format", default="gemm", allowed={"gemm"})
    settings.boolean("zero_point", default=True)
    group_size = settings.group_size("group_size", "q_group_size")
    layers = {module: _layer(table, module, group_size) for module in table.names("qweight")}
    return layers, table.rest(_ORPHANS)
