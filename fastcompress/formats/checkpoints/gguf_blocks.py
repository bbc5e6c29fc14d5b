"""GGUF's blocks of 32 weights as canonical layers.

Q4_0: float16 d, 16 bytes; byte j holds element j below and j + 16 above; ``weight = d * (q - 8)``.
Q4_1: float16 d, float16 m, 16 bytes alike; ``weight = d * q + m``.
Q8_0: float16 d, 32 int8; ``weight = d * q``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import LayerCanonical
from fastcompress.formats.checkpoints.words import pack_nibbles_lean
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["BLOCK", "FLOAT_TYPES", "layer_of_blocks", "take_rows"]

BLOCK = 32
FLOAT_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HALF_BYTES = 2
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
    words = torch.empty(out, blocks * BLOCK // 8, dtype=torch.int32)
    step = max(1, _PART_BYTES // (blocks * BLOCK))
    for begin in range(0, out, step):
        part = octets[begin : begin + step]
        values = torch.cat([part & 15, part >> 4], dim=-1)
        words[begin : begin + step] = pack_nibbles_lean(values.reshape(part.shape[0], -1))
    return words


def layer_of_blocks(kind: str, raw: Tensor, out: int, inputs: int) -> LayerCanonical:
    """A layer from the bytes of a tensor ``[out, in]`` of type Q4_0, Q4_1 or Q8_0, without bias.

    Raises:
        ValueError: a scale or minimum is NaN or infinite.
    """
    blocks = raw.view(out, inputs // BLOCK, -1)
    scale = _halves(blocks, 0)
    if kind == "Q8_0":
        values = blocks[..., _HALF_BYTES:].reshape(out, inputs).view(torch.int8)
        return W8Canonical(values, scale, None, BLOCK)
    if kind == "Q4_0":
        return W4Canonical(_words(blocks[..., _HALF_BYTES:]), scale, None, inputs, BLOCK, "float")
    low = _halves(blocks, _HALF_BYTES).to(torch.float32)
    return W4Canonical(_words(blocks[..., 2 * _HALF_BYTES :]), scale, None, inputs, BLOCK, "float", None, low)


def take_rows(c: LayerCanonical, order: Tensor) -> LayerCanonical:
    """The same layer with its outputs in another order (no bias)."""
    if isinstance(c, W4Canonical):
        low = None if c.weight_min is None else c.weight_min[order]
        return replace(c, weight_packed=c.weight_packed[order], weight_scale=c.weight_scale[order], weight_min=low)
    return replace(c, weight=c.weight[order], weight_scale=c.weight_scale[order])
