"""Reading and writing safetensors files, with every field of the header checked before a tensor is allocated.

The file is ``u64 header length | JSON header | tensor bytes``; all numbers are little-endian. Any safetensors
reader opens what `write_tensors` writes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from fastcompress.formats import strictjson

__all__ = ["DTYPES", "DTYPE_NAMES", "TensorInfo", "read_header", "read_tensors", "write_tensors"]

#: safetensors' dtype names → torch's.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # what other safetensors readers accept
_MAX_RANK = 16


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the header: dtype name, shape, and the bytes ``[begin, end)`` counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _contiguous_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write ``tensors`` as one safetensors file, a tensor at a time.

    Returns:
        The file's size in bytes and its SHA-256 (hex).

    Raises:
        ValueError: a tensor's dtype has no name in the format.
    """
    # Wide dtypes first: with a header padded to 8 bytes every tensor is then aligned to its element.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}, which safetensors files cannot hold")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = strictjson.dumps(header).encode("ascii")
    text += b" " * (-len(text) % _LENGTH_BYTES)
    sha = hashlib.sha256()
    size = 0
    for chunk in (len(text).to_bytes(_LENGTH_BYTES, "little"), text):
        file.write(chunk)
        sha.update(chunk)
        size += len(chunk)
    for name in order:
        data = _contiguous_bytes(tensors[name])
        file.write(data)
        sha.update(data)
        size += data.nbytes
    return size, sha.hexdigest()


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parse_entry(name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r}: its header entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r}: unknown dtype {dtype!r:.60}; allowed: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(map(_is_size, shape)):
        raise ValueError(f"tensor {name!r}: the shape must be a list of at most {_MAX_RANK} non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"tensor {name!r}: data_offsets must be two non-negative integers")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise ValueError(f"tensor {name!r}: data_offsets span {end - begin} bytes, dtype and shape need {nbytes}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def read_header(file: BinaryIO, file_bytes: int) -> tuple[dict[str, TensorInfo], bytes]:
    """Read and check the header of a safetensors file that is ``file_bytes`` long.

    Returns:
        The tensors in the order of their bytes, and the raw bytes read so far (length and header).

    Raises:
        ValueError: anything that does not add up; the message names the tensor.
    """
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) != _LENGTH_BYTES:
        raise ValueError(f"the file is {file_bytes} bytes long, too short for a safetensors header; it is truncated")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > min(file_bytes - _LENGTH_BYTES, _MAX_HEADER_BYTES):
        raise ValueError(f"the header claims {header_bytes} bytes, the file has {file_bytes}; truncated or corrupt")
    text = file.read(header_bytes)
    if len(text) != header_bytes:
        raise ValueError("the file ends inside its header; it is truncated")
    try:
        header = strictjson.loads(text)
    except ValueError as error:
        raise ValueError(f"the header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("the header must be a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ must map strings to strings")
    infos = {name: _parse_entry(name, entry) for name, entry in header.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = 0
    for name, info in ordered.items():
        if info.begin != position:
            raise ValueError(f"tensor {name!r} begins at byte {info.begin}, the one before ends at {position}")
        position = info.end
    data_bytes = file_bytes - _LENGTH_BYTES - header_bytes
    if position != data_bytes:
        last = next(reversed(ordered), "")
        raise ValueError(
            f"tensor {last!r} ends at byte {position} of the data, the file holds {data_bytes}; truncated or corrupt"
        )
    return ordered, prefix + text


def read_tensors(file: BinaryIO, infos: Mapping[str, TensorInfo], head: bytes) -> tuple[dict[str, Tensor], str]:
    """Read all tensors (CPU) from a file whose header `read_header` has just checked.

    Memory is what the tensors take, which is less than the file.

    Returns:
        The tensors, and the SHA-256 (hex) of the whole file.

    Raises:
        ValueError: the file ended early (it changed while it was read), or a boolean is neither 0 nor 1.
    """
    sha = hashlib.sha256(head)
    tensors: dict[str, Tensor] = {}
    for name, info in infos.items():
        raw = torch.empty(info.end - info.begin, dtype=torch.uint8)
        view = memoryview(cast(Any, raw.numpy())).cast("B") if raw.numel() else memoryview(b"")
        filled = 0
        while filled < len(view):
            count = cast(Any, file).readinto(view[filled:])
            if not count:
                raise ValueError(f"tensor {name!r}: the file ended after {filled} of {len(view)} bytes")
            filled += count
        sha.update(view)
        if info.dtype == "BOOL" and bool((raw > 1).any()):
            raise ValueError(f"tensor {name!r}: a boolean must be stored as 0 or 1")
        tensors[name] = raw.view(DTYPES[info.dtype]).reshape(info.shape)
    return tensors, sha.hexdigest()
