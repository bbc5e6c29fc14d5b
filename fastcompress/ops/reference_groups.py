"""The ``reference`` layout of weights in groups: a 256-byte header, then canonical tensors at multiples of 64 bytes.

As `reference_layout`, with which it shares the place of the checksums.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import torch
from torch import Tensor

from ..errors import PackedBlobError
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical
from .checks import HEADER_BYTES
from .constants import ACTIVATIONS, INPUT_MODES

__all__ = ["check", "encode", "info", "is_reference", "unpack"]

_MAGICS = {"linear_w4": b"FCPYRW4\0", "linear_w8": b"FCPYRW8\0"}
_MAGIC_BYTES = 8
_ALIGN = 64
# payload bytes, out, in, group size, scale dtype, mode, activation, has bias, has zero points, has minima
_FIELDS = struct.Struct("<QQQQIIIIII")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DTYPE_NAMES = ("f32", "bf16", "f16")
_CHECKSUMS = struct.Struct("<QQ")
_BODY = HEADER_BYTES - _CHECKSUMS.size
_REMEDY = "make it again from the canonical tensors (layer.repack(), or load the state_dict)"


def _padded(part: Tensor) -> Tensor:
    flat = part.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % _ALIGN))


def encode(c: W4Canonical | W8Canonical) -> Tensor:
    """Write a validated layer, on the weight's device."""
    if isinstance(c, W4Canonical):
        parts = [c.weight_packed, c.weight_scale, c.bias, c.weight_zero_point, c.weight_min]
    else:
        parts = [c.weight, c.weight_scale, c.bias, None, None]
    payload = torch.cat([_padded(part) for part in parts if part is not None])
    fields = _FIELDS.pack(
        payload.numel(),
        *c.weight_shape,
        c.group_size,
        _DTYPES.index(c.weight_scale.dtype),
        INPUT_MODES[c.input_mode],
        ACTIVATIONS[c.activation],
        *(part is not None for part in parts[2:]),
    )
    body = (_MAGICS[c.family] + fields).ljust(_BODY, b"\0") + struct.pack("<Q", zlib.crc32(payload.numpy().data))
    head = body + struct.pack("<Q", zlib.crc32(body))
    packed = torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), payload])
    return packed.to(c.weight_scale.device)


def is_reference(packed: Tensor) -> bool:
    """Whether a blob claims this layout."""
    return packed.dim() == 1 and _magic(packed) in _MAGICS.values()


def _magic(packed: Tensor) -> bytes:
    return packed[:_MAGIC_BYTES].cpu().numpy().tobytes()


def _read(packed: Tensor) -> tuple[tuple[int, ...], int]:
    head = packed[:HEADER_BYTES].cpu().numpy().tobytes()
    payload_crc, head_crc = _CHECKSUMS.unpack_from(head, _BODY)
    if zlib.crc32(head[:-8]) != head_crc:
        raise PackedBlobError(f"packed blob: header checksum mismatch, the header is corrupt; {_REMEDY}")
    fields = _FIELDS.unpack_from(head, _MAGIC_BYTES)
    if packed.numel() != HEADER_BYTES + fields[0]:
        raise PackedBlobError(
            f"packed blob: {packed.numel()} bytes, the header announces {HEADER_BYTES + fields[0]}; {_REMEDY}"
        )
    return fields, payload_crc


def unpack(packed: Tensor) -> W4Canonical | W8Canonical:
    """The canonical layer as copies. Raises PackedBlobError."""
    (_, out, inputs, group, dtype, mode, activation, *present), _ = _read(packed)
    groups, start = -(-inputs // group), HEADER_BYTES

    def take(kind: torch.dtype, *shape: int) -> Tensor:
        nonlocal start
        count = torch.Size(shape).numel() * kind.itemsize
        part = packed[start : start + count].clone().view(kind).view(shape)
        start += -(-count // _ALIGN) * _ALIGN
        return part

    four = _magic(packed) == _MAGICS["linear_w4"]
    words = take(torch.int32, out, -(-inputs // 8)) if four else take(torch.int8, out, inputs)
    scale = take(_DTYPES[dtype], out, groups)
    bias = take(torch.float32, out) if present[0] else None
    zero = take(torch.uint8, out, groups) if present[1] else None
    low = take(torch.float32, out, groups) if present[2] else None
    modes, activations = list(INPUT_MODES), list(ACTIVATIONS)
    if not four:
        return W8Canonical(words, scale, bias, group, modes[mode], activations[activation])
    return W4Canonical(words, scale, bias, inputs, group, modes[mode], zero, low, activations[activation])


def check(packed: Tensor) -> None:
    """Check both checksums. Raises PackedBlobError."""
    _, payload_crc = _read(packed)
    if zlib.crc32(packed[HEADER_BYTES:].cpu().contiguous().numpy().data) != payload_crc:
        raise PackedBlobError(f"packed blob: payload checksum mismatch, the weights are corrupt; {_REMEDY}")


def info(packed: Tensor) -> dict[str, Any]:
    """The header for humans; see :func:`fastcompress.ops.packing.info`. Raises PackedBlobError."""
    (_, out, inputs, group, dtype, mode, activation, *present), _ = _read(packed)
    family = next(name for name, magic in _MAGICS.items() if magic == _magic(packed))
    return {
        "layout_version": 1,
        "family": family,
        "isa": "reference",
        "kernel": f"{family}_reference",
        "bytes": packed.numel(),
        "n": out,
        "k": inputs,
        "groups": 1,
        "kernel_size": (1, 1),
        "group_size": group,
        "scale_dtype": _DTYPE_NAMES[dtype],
        "has_bias": bool(present[0]),
        "input_mode": list(INPUT_MODES)[mode],
        "activation": list(ACTIVATIONS)[activation],
    }
