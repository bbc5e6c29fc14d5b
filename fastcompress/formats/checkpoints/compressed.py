"""Checkpoints of compressed-tensors (llm-compressor), formats ``pack-quantized`` and ``int-quantized``.

``pack-quantized``: ``weight_packed`` int32 ``[out, ceil(in * bits / 32)]`` holds the values plus 2^(bits - 1), lowest
bits first; ``weight_shape`` int64 ``[2]``; ``weight_scale`` ``[out, groups]``; ``weight_zero_point`` int32
``[ceil(out * bits / 32), groups]`` is packed along the outputs; ``weight_g_idx`` int32 ``[in]`` with act-order.
``int-quantized``: ``weight`` int8 ``[out, in]``, ``weight_zero_point`` int8 ``[out, groups]``. Our own ``fastcompress``
files are the same with a float ``weight_min`` ``[out, groups]`` in place of a zero point where a layer has one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import StoredLayer
from fastcompress.formats.checkpoints.layers import eight_bit, four_bit, group_count
from fastcompress.formats.checkpoints.schemes import PACKED, LayerScheme, Schemes
from fastcompress.formats.checkpoints.settings import Settings
from fastcompress.formats.checkpoints.table import FLOATS, INTEGERS, TensorTable
from fastcompress.formats.checkpoints.words import regroup_inputs, unpack_words
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles

__all__ = ["read_compressed"]

_ORPHANS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_min")


def _shape(table: TensorTable, module: str, bits: int) -> tuple[Tensor, int, int]:
    """The packed words, and the outputs and inputs that ``weight_shape`` says."""
    words = table.take(module + ".weight_packed", (torch.int32,), (None, None))
    name = module + ".weight_shape"
    out, inputs = table.take(name, INTEGERS, (2,)).tolist()
    if out != words.shape[0] or inputs < 1 or -(-inputs * bits // 32) != words.shape[1]:
        raise table.error(name, f"says {[out, inputs]}, weight_packed has shape {list(words.shape)}")
    return words, out, inputs


def _scales(table: TensorTable, module: str, out: int, groups: int, strategy: str) -> Tensor:
    """Scales ``[out, groups]``; one for the whole tensor is repeated."""
    name = module + ".weight_scale"
    if strategy != "tensor":
        return table.take_finite(name, FLOATS, (out, groups)).contiguous()
    scale = table.take_finite(name, FLOATS, None)
    return scale.expand(out).reshape(out, 1).contiguous()


def _packed_zero(table: TensorTable, module: str, out: int, groups: int) -> Tensor:
    name = module + ".weight_zero_point"
    words = table.take(name, (torch.int32,), (-(-out // 8), groups))
    return unpack_words(words.t().contiguous(), 4)[:, :out].t().contiguous()


def _plain_zero(table: TensorTable, module: str, out: int, groups: int) -> Tensor:
    name = module + ".weight_zero_point"
    zero = table.take(name, (torch.int8,), (out, groups))
    if bool((zero < -8).any()) or bool((zero > 7).any()):
        raise table.error(name, "four-bit zero points must lie in [-8, 7]")
    return (zero + 8).to(torch.uint8)


def _zero_point(table: TensorTable, module: str, scheme: LayerScheme, out: int, groups: int) -> Tensor | None:
    """Zero points 0 to 15; symmetric layers may have them too, all in the middle."""
    name = module + ".weight_zero_point"
    if scheme.symmetric and name not in table:
        return None
    if scheme.bits == 8:
        if scheme.format == PACKED:
            words = table.take(name, (torch.int32,), (-(-out // 4), groups))
            zero = unpack_words(words.t().contiguous(), 8)[:, :out] ^ 128
        else:
            zero = table.take(name, (torch.int8,), (out, groups))
        if bool(zero.any()):
            raise table.error(name, "8-bit weights with zero points are not supported")
        return None
    zero = (_packed_zero if scheme.format == PACKED else _plain_zero)(table, module, out, groups)
    if scheme.symmetric and bool((zero != 8).any()):
        raise table.error(name, "the settings say symmetric, yet there are zero points other than 0")
    return zero


def _order(table: TensorTable, module: str, scheme: LayerScheme, inputs: int, group_size: int) -> Tensor | None:
    name = module + ".weight_g_idx"
    if not scheme.act_order and name not in table:
        return None
    g_idx = table.take(name, INTEGERS, (inputs,))
    if bool((g_idx == -1).all()):  # how "no order" is written
        return None
    try:
        return regroup_inputs(g_idx, group_size)
    except ValueError as error:
        raise table.error(name, str(error)) from None


def _with_activations(
    table: TensorTable, module: str, scheme: LayerScheme, values: Tensor, scale: Tensor, bias: Tensor | None
) -> StoredLayer:
    """An int8 layer whose activations are int8 too."""
    name = module + ".weight_scale"
    if scale.shape[1] != 1:
        raise table.error(name, "int8 activations need one scale for each output (strategy channel or tensor)")
    wide = scale.to(torch.float32).reshape(-1)
    if not bool((wide >= torch.finfo(torch.float32).tiny).all()):
        raise table.error(name, "must be positive")
    input_scale, zero = 1.0, 0
    if scheme.input_mode == "static":
        input_scale, zero = _static_input(table, module)
    return StoredLayer(W8A8Canonical(values.contiguous(), wide, bias, scheme.input_mode, input_scale, zero))


def _static_input(table: TensorTable, module: str) -> tuple[float, int]:
    name = module + ".input_scale"
    scale = float(table.take_finite(name, FLOATS, None))
    if not scale >= torch.finfo(torch.float32).tiny:
        raise table.error(name, f"must be positive and normal, is {scale!r}")
    # Their activations are signed with a signed zero point; ours are the same plus 128.
    name = module + ".input_zero_point"
    zero = int(table.take(name, (torch.int8,), None)) if name in table else 0
    return scale, zero + 128


def _layer(table: TensorTable, module: str, scheme: LayerScheme) -> StoredLayer:
    if scheme.format == PACKED:
        words, out, inputs = _shape(table, module, scheme.bits)
        values = unpack_words(words, 8)[:, :inputs] ^ 128 if scheme.bits == 8 else words
        values = values.view(torch.int8) if scheme.bits == 8 else values
    else:
        values = table.take(module + ".weight", (torch.int8,), (None, None))
        out, inputs = values.shape
        table.drop(module + ".weight_shape")
        if scheme.bits == 4:
            if bool((values < -8).any()) or bool((values > 7).any()):
                raise table.error(module + ".weight", "four-bit values must lie in [-8, 7]")
            values = pack_nibbles((values + 8).view(torch.uint8))
    group_size, groups = group_count(inputs, scheme.group_size)
    scale = _scales(table, module, out, groups, scheme.strategy)
    bias = table.take_bias(module, out)
    minimum = None
    if module + ".weight_min" in table and scheme.bits == 4:
        minimum = table.take_finite(module + ".weight_min", (torch.float32,), (out, groups)).contiguous()
    zero = None if minimum is not None else _zero_point(table, module, scheme, out, groups)
    order = _order(table, module, scheme, inputs, group_size)
    if scheme.bits == 8 and scheme.input_mode != "dynamic_16bit":
        if order is not None:
            raise table.error(module + ".weight_g_idx", "is not supported where activations are int8")
        return _with_activations(table, module, scheme, values, scale, bias)
    if scheme.bits == 8:
        return eight_bit(values, scale, bias, group_size, order=order)
    mode = "dynamic_16bit" if scheme.input_mode == "dynamic_16bit" else "dynamic_symmetric"
    if scheme.input_mode == "static":
        raise table.error(module + ".weight_packed", "4-bit weights with static int8 activations are not supported")
    stored = four_bit(values, scale, zero, bias, inputs, group_size, order=order, input_mode=mode)
    if minimum is None:
        return stored
    assert isinstance(stored.canonical, W4Canonical)
    return replace(stored, canonical=replace(stored.canonical, weight_min=minimum))


def read_compressed(table: TensorTable, settings: Settings) -> tuple[dict[str, StoredLayer], dict[str, Tensor]]:
    """Take all layers out of the table; returns them and the other tensors.

    Raises:
        ValueError: a setting is wrong. CheckpointError: a tensor is.

    Source: the files of llm-compressor; layouts of compressed-tensors' pack-quantized and int-quantized formats.
    """
    schemes = Schemes(settings)
    packed = table.names("weight_packed")
    plain = [module for module in table.names("weight_scale") if table.dtype(module + ".weight") == torch.int8]
    layers = {}
    for module in (*packed, *plain):
        try:
            scheme = schemes.of(module)
        except ValueError as error:
            raise table.error(module + (".weight_packed" if module in packed else ".weight"), str(error)) from None
        layers[module] = _layer(table, module, scheme)
    return layers, table.rest(_ORPHANS)
