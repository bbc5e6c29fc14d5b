"""GGUF's blocks of weights as canonical layers.

Q4_0: float16 d, 16 bytes; byte j holds element j below and j + 16 above; ``weight = d * (q - 8)``.
Q4_1: float16 d, float16 m, 16 bytes alike; ``weight = d * q + m``.
Q8_0: float16 d, 32 int8; ``weight = d * q``.
Q6_K (what ``llama-quantize`` makes of output heads): blocks of 256 in two halves of 128. The low four bits of element
e of a half are in byte e % 64, above for e >= 64, the high two in byte e % 32 at bits 2 * (e // 32); then come 16 int8
scales s and a float16 d; ``weight = d * s * (q - 32)``. It becomes int8 with a float32 scale for 16 inputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import LayerCanonical
from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["FLOAT_TYPES", "layer_of_blocks", "take_rows"]

_BLOCK = 32
FLOAT_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HALF_BYTES = 2
_SIX_BLOCK, _SIX_GROUP = 256, 16
#: Rows are unpacked in parts of about so many bytes, so that temporary copies stay small.
_PART_BYTES = 1 << 20


def _halves(blocks: Tensor, begin: int) -> Tensor:
    """The float16 at byte `begin` of each block, ``[out, blocks]``; every one must be finite."""
    values = blocks[..., begin : begin + _HALF_BYTES].contiguous().view(torch.float16).squeeze(-1)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a scale or minimum is NaN or infinite; the file is corrupt")
    return values


def _words(octets: Tensor) -> Tensor:
    """Bytes ``[out, blocks, 16]`` as canonical words ``[out, blocks * 4]``."""
    out, blocks, _ = octets.shape
    words = torch.empty(out, blocks * _BLOCK // 8, dtype=torch.int32)
    step = max(1, _PART_BYTES // (blocks * _BLOCK))
    for begin in range(0, out, step):
        part = octets[begin : begin + step]
        values = torch.cat([part & 15, part >> 4], dim=-1)
        words[begin : begin + step] = pack_nibbles(values.reshape(part.shape[0], -1))
    return words


def _six_bits(raw: Tensor, out: int, inputs: int) -> W8Canonical:
    values = torch.empty(out, inputs, dtype=torch.int8)
    scale = torch.empty(out, inputs // _SIX_GROUP, dtype=torch.float32)
    rows = raw.view(out, inputs // _SIX_BLOCK, -1)
    step = max(1, _PART_BYTES // inputs)
    for begin in range(0, out, step):
        part = rows[begin : begin + step]
        count, blocks, _ = part.shape
        low = part[..., :128].reshape(count, blocks, 2, 1, 64)
        low = torch.cat([low & 15, low >> 4], dim=3).view(count, blocks, 2, 128)
        high = part[..., 128:192].reshape(count, blocks, 2, 1, 32)
        high = torch.cat([high & 3, (high >> 2) & 3, (high >> 4) & 3, high >> 6], dim=3).view(count, blocks, 2, 128)
        values[begin : begin + step] = ((low | (high << 4)).view(torch.int8) - 32).view(count, inputs)
        fine = part[..., 192:208].contiguous().view(torch.int8).to(torch.float32)
        scale[begin : begin + step] = (_halves(part, 208).to(torch.float32).unsqueeze(-1) * fine).view(count, -1)
    return W8Canonical(values, scale, None, _SIX_GROUP)


def layer_of_blocks(kind: str, raw: Tensor, out: int, inputs: int) -> LayerCanonical:
    """A layer from the bytes of a tensor ``[out, in]`` of type Q4_0, Q4_1, Q8_0 or Q6_K, without bias.

    Raises:
        ValueError: a scale or minimum is NaN or infinite.
    """
    if kind == "Q6_K":
        return _six_bits(raw, out, inputs)
    blocks = raw.view(out, inputs // _BLOCK, -1)
    scale = _halves(blocks, 0)
    if kind == "Q8_0":
        values = blocks[..., _HALF_BYTES:].reshape(out, inputs).view(torch.int8)
        return W8Canonical(values, scale, None, _BLOCK)
    if kind == "Q4_0":
        return W4Canonical(_words(blocks[..., _HALF_BYTES:]), scale, None, inputs, _BLOCK, "dynamic_16bit")
    low = _halves(blocks, _HALF_BYTES).to(torch.float32)
    return W4Canonical(_words(blocks[..., 2 * _HALF_BYTES :]), scale, None, inputs, _BLOCK, "dynamic_16bit", None, low)


def take_rows(c: LayerCanonical, order: Tensor) -> LayerCanonical:
    """The same layer with its outputs in another order (no bias)."""
    if isinstance(c, W4Canonical):
        low = None if c.weight_min is None else c.weight_min[order]
        return replace(c, weight_packed=c.weight_packed[order], weight_scale=c.weight_scale[order], weight_min=low)
    return replace(c, weight=c.weight[order], weight_scale=c.weight_scale[order])
