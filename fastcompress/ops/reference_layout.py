"""The ``reference`` blob layout: a 256-byte header, then the canonical tensors, each at a multiple of 64 bytes.

::

    0        8          12     16       32         48        132         240       248       256
    | magic  | version  | size | family | "reference" | fields | (zeros)  | payload | header  | weight | scale | bias |
                                                                          | CRC-32  | CRC-32  |

Little endian. Written where there are no native kernels, and for devices that the native kernels do not serve.
"""

import math
import struct
import zlib
from typing import Any

import torch
from torch import Tensor

from ..errors import PackedBlobError
from .block_csr import BlockCSR, matrix_of, weight_of
from .canonical import W8A8Canonical
from .canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .checks import HEADER_BYTES
from .constants import ACTIVATIONS, INPUT_MODES

__all__ = ["ISA", "LAYOUT_VERSION", "check", "decode", "encode", "info", "is_reference", "read_header", "unpack"]

#: What :func:`info` says where native blobs name their instruction set.
ISA = "reference"
LAYOUT_VERSION = 3

_MAGIC = b"FCPYREF\0"
_ALIGN = 64
# version, header bytes, family, isa, payload bytes, weight shape (4), ndim, groups, mode, activation, input scale,
# input zero point, has bias, weight dtype, block (0, 0 where the weight was dense), weight bits
_FIELDS = struct.Struct("<II16s16sQ4QIIIIfiIIIII")
_DTYPES = (torch.int8, torch.float32, torch.bfloat16)
_DTYPE_NAMES = {torch.int8: "s8", torch.float32: "f32", torch.bfloat16: "bf16"}
_CHECKSUMS = struct.Struct("<QQ")
_BODY = HEADER_BYTES - _CHECKSUMS.size
_REMEDY = "make it again from the canonical tensors (layer.repack(), or load the state_dict)"


def _round_up(value: int) -> int:
    return -(-value // _ALIGN) * _ALIGN


def _head(packed: Tensor) -> bytes:
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        got = packed.dtype if isinstance(packed, Tensor) else type(packed).__name__
        raise TypeError(f"packed blob: expected a uint8 tensor, got {got}")
    if packed.dim() != 1:
        raise PackedBlobError(f"packed blob: expected one dimension, got shape {list(packed.shape)}; {_REMEDY}")
    return packed[:HEADER_BYTES].cpu().numpy().tobytes()


def is_reference(packed: Tensor) -> bool:
    """Whether a blob claims the reference layout (its magic says so); everything else is the native module's.

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: too short to be any blob, or no blob at all and no native module to say more.
    """
    head = _head(packed)
    if len(head) < HEADER_BYTES:
        raise PackedBlobError(
            f"packed blob: {len(head)} bytes are shorter than the {HEADER_BYTES}-byte header; {_REMEDY}"
        )
    return head.startswith(_MAGIC)


def encode(c: W8A8Canonical | SparseW8A8Canonical | SparseCanonical) -> Tensor:
    """Write a validated canonical layer in this layout, on the weight's device; blocks become a dense weight."""
    block = (0, 0) if isinstance(c, W8A8Canonical) else c.blocks.block_size
    weight = c.weight if isinstance(c, W8A8Canonical) else weight_of(c.blocks.to_dense(), c.weight_shape)
    weight = weight.detach().contiguous()
    parts = [weight.view(-1).view(torch.uint8)]  # flat first: a last dimension of 1 may have any stride
    if not isinstance(c, SparseCanonical):
        parts.append(c.weight_scale.detach().contiguous().view(torch.uint8))
    if c.bias is not None:
        parts.append(c.bias.detach().contiguous().view(torch.uint8))
    payload_bytes = sum(_round_up(part.numel()) for part in parts)
    payload = torch.zeros(payload_bytes, dtype=torch.uint8)
    start = 0
    for part in parts:
        payload[start : start + part.numel()] = part.cpu()
        start += _round_up(part.numel())
    shape = [*weight.shape, 1, 1][:4]
    quantized = (
        (0, 1.0, 0)
        if isinstance(c, SparseCanonical)
        else (INPUT_MODES[c.input_mode], c.input_scale, c.input_zero_point)
    )
    fields = _FIELDS.pack(
        LAYOUT_VERSION,
        HEADER_BYTES,
        c.family.encode(),
        ISA.encode(),
        payload_bytes,
        *shape,
        weight.dim(),
        1 if isinstance(c, SparseCanonical) else c.groups,
        quantized[0],
        ACTIVATIONS[c.activation],
        *quantized[1:],
        c.bias is not None,
        _DTYPES.index(weight.dtype),
        *block,
        c.weight_bits if isinstance(c, W8A8Canonical) else 8 * weight.itemsize,
    )
    body = (_MAGIC + fields).ljust(_BODY, b"\0") + struct.pack("<Q", zlib.crc32(payload.numpy().data))
    head = body + struct.pack("<Q", zlib.crc32(body))
    packed = torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), payload])
    return packed.to(weight.device)


def read_header(packed: Tensor) -> dict[str, Any]:
    """Parse and check the header in O(1).

    Raises:
        PackedBlobError: magic, checksum, version, a field or the length is wrong.
    """
    head = _head(packed)
    if not head.startswith(_MAGIC):
        raise PackedBlobError(
            "packed blob: not in the reference layout (packed for other kernels, or no blob at all); " + _REMEDY
        )
    payload_crc, head_crc = _CHECKSUMS.unpack_from(head, _BODY)
    if zlib.crc32(head[:-8]) != head_crc:
        raise PackedBlobError(f"packed blob: header checksum mismatch, the header is corrupt; {_REMEDY}")
    values = _FIELDS.unpack_from(head, len(_MAGIC))
    version, header_bytes, family, isa, payload_bytes = values[:5]
    shape, (ndim, groups, mode, activation, scale, zero_point, has_bias, dtype, *block, bits) = values[5:9], values[9:]
    if version != LAYOUT_VERSION or header_bytes != HEADER_BYTES:
        raise PackedBlobError(
            f"packed blob: layout version {version}, this build reads version {LAYOUT_VERSION}; {_REMEDY}"
        )
    if packed.numel() != HEADER_BYTES + payload_bytes:
        raise PackedBlobError(
            f"packed blob: {packed.numel()} bytes, the header announces {HEADER_BYTES + payload_bytes}; {_REMEDY}"
        )
    return {
        "layout_version": version,
        "family": family.rstrip(b"\0").decode(),
        "isa": isa.rstrip(b"\0").decode(),
        "bytes": packed.numel(),
        "shape": shape[:ndim],
        "groups": groups,
        "weight_bits": bits,
        "input_mode": list(INPUT_MODES)[mode],
        "activation": list(ACTIVATIONS)[activation],
        "input_scale": scale,
        "input_zero_point": zero_point,
        "has_bias": bool(has_bias),
        "dtype": _DTYPES[dtype],
        "block_size": tuple(block),
        "payload_checksum": payload_crc,
    }


def decode(packed: Tensor, *, copy: bool = False) -> dict[str, Any]:
    """The fields of `W8A8Canonical` with a dense weight of any dtype; ``weight_scale`` is None for floats.

    Tensors are views into the blob unless `copy`. Raises PackedBlobError.
    """
    header = read_header(packed)
    shape, dtype = header["shape"], header["dtype"]
    if packed.storage_offset() % _ALIGN or not packed.is_contiguous():
        packed, copy = packed.clone(), False  # float views need alignment
    start = HEADER_BYTES

    def take(elements: int, kind: torch.dtype) -> Tensor:
        nonlocal start
        part = packed[start : start + elements * kind.itemsize].view(kind)
        start += _round_up(elements * kind.itemsize)
        return part.clone() if copy else part

    weight = take(math.prod(shape), dtype).view(shape)
    scale = take(shape[0], torch.float32) if dtype == torch.int8 else None
    bias = take(shape[0], torch.float32) if header["has_bias"] else None
    rest = ("input_mode", "input_scale", "input_zero_point", "activation", "groups", "weight_bits")
    return {"weight": weight, "weight_scale": scale, "bias": bias, **{key: header[key] for key in rest}}


def unpack(packed: Tensor) -> W8A8Canonical | SparseW8A8Canonical | SparseCanonical:
    """The canonical layer as copies; blocks that are all zero do not come back. Raises PackedBlobError."""
    fields, block = decode(packed, copy=True), read_header(packed)["block_size"]
    if block == (0, 0):
        return W8A8Canonical(**fields)
    weight, scale = fields.pop("weight"), fields.pop("weight_scale")
    del fields["groups"], fields["weight_bits"]
    blocks = BlockCSR.from_dense(matrix_of(weight), block)
    kernel_size = (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else None
    if scale is None:
        return SparseCanonical(blocks, fields["bias"], fields["activation"], kernel_size)
    return SparseW8A8Canonical(blocks, scale, **fields, kernel_size=kernel_size)


def check(packed: Tensor) -> None:
    """Check header and payload checksums. Raises PackedBlobError."""
    header = read_header(packed)
    payload = packed[HEADER_BYTES:].cpu().contiguous().numpy()
    if zlib.crc32(payload.data) != header["payload_checksum"]:
        raise PackedBlobError(f"packed blob: payload checksum mismatch, the weights are corrupt; {_REMEDY}")


def info(packed: Tensor) -> dict[str, Any]:
    """The header for humans; see :func:`fastcompress.ops.packing.info`. Raises PackedBlobError."""
    header = read_header(packed)
    shape, dtype, block = header.pop("shape"), header.pop("dtype"), header.pop("block_size")
    if block != (0, 0):
        header |= {"block_size": block, "value_dtype": _DTYPE_NAMES[dtype]}
    if dtype != torch.int8:
        del header["weight_bits"]
    k = math.prod(shape[1:])
    kernel_size = tuple(shape[2:]) if len(shape) == 4 else (1, 1)
    return {**header, "n": shape[0], "k": k, "kernel_size": kernel_size, "kernel": f"{header['family']}_{ISA}"}
