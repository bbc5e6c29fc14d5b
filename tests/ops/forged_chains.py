"""Programs of ``conv2d_chain`` with fields that `pack_chain` would not write, under a checksum that fits them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["FIELDS", "HEADER_BYTES", "STEP_BYTES", "forge", "seal", "write"]

HEADER_BYTES, STEP_BYTES = 64, 128
_HEADER, _STEP = struct.Struct("<Iiqq32s"), struct.Struct("<12qifi20s")
_HEADER_FIELDS = ("magic", "version", "total_bytes", "steps", "reserved")
#: Of a step, in the order of ``ChainStep`` in csrc/include/fastcompress/chain.h.
FIELDS = (
    *("blob_offset", "blob_bytes", "input", "residual", "stride_h", "stride_w"),
    *("pad_top", "pad_bottom", "pad_left", "pad_right", "dilation_h", "dilation_w"),
    *("out_dtype", "out_scale", "out_zero_point", "reserved"),
)
_WORD = (1 << 64) - 1


def _checksum(text: bytes) -> int:
    h = 0x9E3779B97F4A7C15 ^ len(text)
    for (word,) in (*struct.iter_unpack("<Q", text), (0,)):
        h = (h ^ word) * 0xFF51AFD7ED558CCD & _WORD
        h = (h << 29 | h >> 35) & _WORD
    return h ^ h >> 32


def seal(program: Tensor, steps: int | None = None) -> Tensor:
    """A copy under a checksum of its header and of ``steps`` steps, by default as many as it says."""
    text = bytearray(program.numpy().tobytes())
    count = _HEADER.unpack_from(text)[3] if steps is None else steps
    table = text[HEADER_BYTES : HEADER_BYTES + STEP_BYTES * count]
    first, rest = _checksum(bytes(text[: _HEADER.size])), _checksum(bytes(table))
    struct.pack_into("<Q", text, _HEADER.size, first ^ (rest << 1 & _WORD | rest >> 63))
    return torch.frombuffer(text, dtype=torch.uint8).clone()


def forge(program: Tensor, step: int | None = None, **fields: Any) -> Tensor:
    """A copy with other fields in its header, or in a step."""
    text = bytearray(program.numpy().tobytes())
    names: tuple[str, ...] = _HEADER_FIELDS if step is None else FIELDS
    form, place = (_HEADER, 0) if step is None else (_STEP, HEADER_BYTES + STEP_BYTES * step)
    values = dict(zip(names, form.unpack_from(text, place), strict=True))
    assert set(fields) <= set(values)
    form.pack_into(text, place, *{**values, **fields}.values())
    changed = torch.frombuffer(text, dtype=torch.uint8)
    steps = None if step is not None or "steps" not in fields else _HEADER.unpack_from(program.numpy().tobytes())[3]
    return seal(changed, steps)


def write(blobs: Sequence[Tensor], **fields: Any) -> Tensor:
    """A program of 1x1 convolutions one behind the other, whatever the blobs are; ``fields`` of all steps."""
    place, table, body = -(-(HEADER_BYTES + STEP_BYTES * len(blobs)) // 64) * 64, b"", b""
    for index, blob in enumerate(blobs):
        values: dict[str, Any] = {
            "input": index - 1,
            "residual": -2,
            "stride_h": 1,
            "stride_w": 1,
            "dilation_h": 1,
            "dilation_w": 1,
        }
        values |= {"out_scale": 1.0, "reserved": bytes(20), "blob_offset": place + len(body)}
        values |= {"blob_bytes": blob.numel(), **fields}
        table += _STEP.pack(*(values.get(name, 0) for name in FIELDS))
        body += blob.numpy().tobytes()
        body += bytes(-len(body) % 64)
    header = _HEADER.pack(0x48434346, 1, place + len(body), len(blobs), bytes(32)) + bytes(8)
    text = bytearray((header + table).ljust(place, b"\0") + body)
    return seal(torch.frombuffer(text, dtype=torch.uint8))
