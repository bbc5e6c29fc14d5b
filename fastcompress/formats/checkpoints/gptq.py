"""GPTQ checkpoints (AutoGPTQ, GPTQModel), versions 1 and 2.

``qweight`` int32 ``[in * bits / 32, out]`` packs along the inputs, ``qzeros`` int32 ``[groups, out * bits / 32]`` along
the outputs, both lowest bits first; ``scales`` ``[groups, out]``; ``g_idx`` int32 ``[in]`` gives each input's group.
``weight[o, i] = scales[g_idx[i], o] * (q - zero point)``. Version 1 stores the zero point less one, modulo 2^bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import StoredLayer
from fastcompress.formats.checkpoints.layers import eight_bit, four_bit, group_count
from fastcompress.formats.checkpoints.settings import Settings
from fastcompress.formats.checkpoints.table import FLOATS, TensorTable
from fastcompress.formats.checkpoints.words import regroup_inputs, unpack_words

__all__ = ["read_gptq"]

_INT32 = (torch.int32,)
_ORPHANS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class _Scheme:
    bits: int
    group_size: int | None
    zero_offset: int  # what version 1 took off the stored zero points
    act_order: bool


def _scheme(settings: Settings) -> _Scheme:
    bits = settings.bits("bits", "wbits", allowed=(4, 8))
    version = settings.string("checkpoint_format", "format", default="gptq", allowed={"gptq", "gptq_v2"})
    settings.string("pack_dtype", default="int32", allowed={"int32"})
    settings.refuse("is_marlin_format", "dynamic")
    settings.boolean("sym", default=True)  # decides nothing: the zero points say it
    act_order = settings.boolean("desc_act", default=False)
    return _Scheme(bits, settings.group_size("group_size", "groupsize"), int(version == "gptq"), act_order)


def _eight_bit_values(table: TensorTable, module: str, words: Tensor, zero: Tensor) -> Tensor:
    if bool((zero != 128).any()):
        raise table.error(
            module + ".qzeros",
            "8-bit weights with zero points other than 128 are not supported; quantize with sym=True, or to 4 bits",
        )
    return (unpack_words(words, 8) ^ 128).view(torch.int8)


def _layer(table: TensorTable, module: str, scheme: _Scheme) -> StoredLayer:
    per_word = 32 // scheme.bits
    qweight = table.take(module + ".qweight", _INT32, (None, None))
    inputs, out = qweight.shape[0] * per_word, qweight.shape[1]
    group_size, groups = group_count(inputs, scheme.group_size)
    if out % per_word:
        raise table.error(module + ".qweight", f"has {out} outputs, not a multiple of the {per_word} in a word")
    scale = table.take_finite(module + ".scales", FLOATS, (groups, out)).t().contiguous()
    qzeros = table.take(module + ".qzeros", _INT32, (groups, out // per_word))
    zero = unpack_words(qzeros, scheme.bits).t().contiguous()
    zero += scheme.zero_offset  # uint8 wraps where 8 bits do
    if scheme.bits == 4:
        zero &= 15
    order = None
    if scheme.act_order or module + ".g_idx" in table:
        g_idx = table.take(module + ".g_idx", _INT32, (inputs,))
        try:
            order = regroup_inputs(g_idx, group_size)
        except ValueError as error:
            raise table.error(module + ".g_idx", str(error)) from None
    words = qweight.t().contiguous()
    bias = table.take_bias(module, out)
    if scheme.bits == 4:
        return four_bit(words, scale, zero, bias, inputs, group_size, order=order)
    return eight_bit(_eight_bit_values(table, module, words, zero), scale, bias, group_size, order=order)


def read_gptq(table: TensorTable, settings: Settings) -> tuple[dict[str, StoredLayer], dict[str, Tensor]]:
    """Take all layers out of the table; returns them and the other tensors.

    Raises:
        ValueError: a setting is wrong. CheckpointError: a tensor is.

    Source: Frantar et al. 2023, "GPTQ", arXiv 2210.17323; the layout is AutoGPTQ's.
    """
    scheme = _scheme(settings)
    layers = {module: _layer(table, module, scheme) for module in table.names("qweight")}
    return layers, table.rest(_ORPHANS)
