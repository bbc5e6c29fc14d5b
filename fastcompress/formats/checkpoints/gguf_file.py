"""The GGUF container (versions 2 and 3, little-endian), with every size and offset checked before it is used.

``magic | version | counts of tensors and metadata | metadata | tensor descriptions | padding | tensor bytes``. Arrays
of metadata (a tokenizer's vocabulary) are stepped over, not kept: only their length and type are.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor

from fastcompress.formats.reading import open_regular

__all__ = ["GGUFArray", "GGUFFile", "GGUFTensor"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEY_BYTES = 65_535
_MAX_NAME_BYTES = 256
_MAX_RANK = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), _BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
#: Type code → name, elements of a block, bytes of a block.
_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}  # fmt: skip
_OTHER_TYPES = {
    6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 15: "Q8_K", 20: "IQ4_NL",
    23: "IQ4_XS", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFArray:
    """An array of the metadata that was not read: the type code and number of its elements."""

    type: int
    count: int


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: type name, shape as torch has it (the fastest dimension last), and its bytes in the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class GGUFFile:
    """An open GGUF file: ``metadata`` (key → number, text, truth value or `GGUFArray`) and ``tensors`` (name → place).

    Raises:
        OSError: the file cannot be opened. ValueError: anything in it does not add up.

    Example:
        >>> with GGUFFile(Path("model.gguf")) as file:
        ...     words = file.read("blk.0.attn_q.weight")
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def __init__(self, path: Path) -> None:
        self._file = io.BufferedReader(cast(Any, open_regular(path)))
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str) -> Tensor:
        """The bytes of a tensor, uint8 ``[nbytes]``. Raises ValueError if the file became shorter."""
        info = self.tensors[name]
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self._file.seek(info.begin)
        view = memoryview(cast(Any, raw.numpy()))
        if self._file.readinto(view) != info.nbytes:
            raise ValueError(f"tensor {name!r}: the file ended early")
        return raw

    def _take(self, count: int, what: str) -> bytes:
        if count > self._size - self._file.tell():
            raise ValueError(f"{what}: the file ends too early; it is truncated or corrupt")
        return self._file.read(count)

    def _number(self, code: int, what: str) -> Any:
        form = _SCALARS[code]
        value = form.unpack(self._take(form.size, what))[0]
        if code == _BOOL:
            if value > 1:
                raise ValueError(f"{what}: a truth value must be stored as 0 or 1")
            return bool(value)
        return value

    def _count(self, least_bytes: int, what: str) -> int:
        """A 64-bit number of things that take at least so many bytes each in the rest of the file."""
        count = cast(int, self._number(10, what))
        if count * least_bytes > self._size - self._file.tell():
            raise ValueError(f"{what}: says {count}, the file is too short for that; it is truncated or corrupt")
        return count

    def _text(self, limit: int, what: str) -> str:
        length = self._count(1, what)
        if length > limit:
            raise ValueError(f"{what}: has {length} bytes, {limit} are allowed")
        return self._take(length, what).decode("utf-8")

    def _skip_array(self, what: str) -> GGUFArray:
        code = self._number(4, what)
        if code == _STRING:
            count = self._count(8, what)
            for _ in range(count):
                self._file.seek(self._count(1, what), os.SEEK_CUR)
            return GGUFArray(code, count)
        if code not in _SCALARS:
            raise ValueError(f"{what}: arrays of the type {code} are not known")
        width = _SCALARS[code].size
        count = self._count(width, what)
        self._file.seek(count * width, os.SEEK_CUR)
        return GGUFArray(code, count)

    def _value(self, what: str) -> Any:
        code = self._number(4, what)
        if code == _ARRAY:
            return self._skip_array(what)
        if code == _STRING:
            return self._text(self._size, what)
        if code not in _SCALARS:
            raise ValueError(f"{what}: the type {code} is not known")
        return self._number(code, what)

    def _read_header(self) -> None:
        if self._take(4, "the header") != _MAGIC:
            raise ValueError("does not begin with GGUF")
        version = self._number(4, "the version")
        if version not in _VERSIONS:
            raise ValueError(f"the version is {version}, allowed: {_VERSIONS}; convert it with a current llama.cpp")
        tensors = self._count(24, "the number of tensors")
        entries = self._count(13, "the number of metadata entries")
        metadata: dict[str, Any] = {}
        for index in range(entries):
            key = self._text(_MAX_KEY_BYTES, f"metadata entry {index}")
            if key in metadata:
                raise ValueError(f"metadata {key!r:.100}: appears twice")
            metadata[key] = self._value(f"metadata {key!r:.100}")
        self.metadata = metadata
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment > 65_536 or alignment & (alignment - 1):
            raise ValueError(f"metadata 'general.alignment': must be a power of two from 8 on, is {alignment!r:.40}")
        self._read_tensors(tensors, alignment)

    def _read_tensors(self, count: int, alignment: int) -> None:
        placed: dict[str, GGUFTensor] = {}
        end = 0  # from the beginning of the tensor bytes, which is not known yet
        for index in range(count):
            name = self._text(_MAX_NAME_BYTES, f"tensor {index}")
            what = f"tensor {name!r}"
            if name in placed:
                raise ValueError(f"{what}: appears twice")
            rank = self._number(4, what)
            if not 1 <= rank <= _MAX_RANK:
                raise ValueError(f"{what}: has {rank} dimensions, allowed: 1 to {_MAX_RANK}")
            shape = tuple(self._number(10, what) for _ in range(rank))[::-1]
            code, offset = self._number(4, what), self._number(10, what)
            if code not in _TYPES:
                known = ", ".join(kind for kind, _, _ in _TYPES.values())
                raise ValueError(
                    f"{what}: is of type {_OTHER_TYPES.get(code, code)}, allowed: {known}; quantize it to Q4_0, Q4_1 "
                    "or Q8_0 (llama-quantize --pure)"
                )
            kind, elements, block_bytes = _TYPES[code]
            if 0 in shape or shape[-1] % elements:
                raise ValueError(f"{what}: has shape {list(shape)}, rows must be whole blocks of {elements}")
            nbytes = math.prod(shape) // elements * block_bytes
            aligned = -(-end // alignment) * alignment
            if offset != aligned:
                raise ValueError(f"{what}: begins at byte {offset} of the data, expected {aligned}")
            end = offset + nbytes
            if end > self._size:
                raise ValueError(f"{what}: takes {nbytes} bytes, the file has {self._size}; truncated or corrupt")
            placed[name] = GGUFTensor(kind, shape, offset, nbytes)
        start = -(-self._file.tell() // alignment) * alignment
        data_bytes = self._size - start
        if not (end <= data_bytes < end + alignment or (end == 0 and data_bytes <= 0)):
            last = next(reversed(placed), "")
            raise ValueError(
                f"tensor {last!r}: ends at byte {end} of the data, the file holds {data_bytes}; truncated or corrupt"
            )
        self.tensors = {
            name: GGUFTensor(info.type, info.shape, start + info.begin, info.nbytes) for name, info in placed.items()
        }
