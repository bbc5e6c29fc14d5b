"""Reading the IDX files of MNIST and Fashion-MNIST, compressed or not, with every field checked.

A file is big-endian: two zero bytes, the element type (0x08: unsigned bytes), the number of dimensions, one u32 for
each dimension, then the elements. Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

__all__ = ["MAGIC_IMAGES", "MAGIC_LABELS", "read_idx"]

MAGIC_LABELS = 0x00000801
MAGIC_IMAGES = 0x00000803
#: Far above any data set of this format; a header that says more is damaged.
_MAX_BYTES = 2**31
_AGAIN = "copy or download the file again"


def read_idx(path: Path, magic: int) -> Tensor:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed on the way.
        magic: `MAGIC_IMAGES` (three dimensions) or `MAGIC_LABELS` (one).

    Returns:
        uint8 ``[n, rows, columns]`` or ``[n]``.

    Raises:
        OSError: the file cannot be opened.
        ValueError: a wrong magic number, impossible sizes, too few or too many bytes; the message names the file.

    Example:
        >>> images = read_idx(Path("train-images-idx3-ubyte.gz"), MAGIC_IMAGES)
    """
    with path.open("rb") as raw:
        try:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
            return _read(path, file, magic)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"read_idx: {path}: not a whole gzip file ({error}); {_AGAIN}") from error


def _read(path: Path, file: BinaryIO, magic: int) -> Tensor:
    rank = magic & 0xFF
    header_bytes = 4 * (1 + rank)
    header = file.read(header_bytes)
    found = int.from_bytes(header[:4], "big")
    if len(header) >= 4 and found != magic:
        raise ValueError(
            f"read_idx: {path}: the magic number is 0x{found:08x}, expected 0x{magic:08x} (unsigned bytes, {rank} "
            f"dimension{'s' if rank > 1 else ''}); is this the right file under this name?"
        )
    if len(header) < header_bytes:
        raise ValueError(f"read_idx: {path}: {len(header)} bytes, shorter than its header of {header_bytes}; {_AGAIN}")
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, header_bytes, 4)]
    expected = 1
    for size in shape:
        expected *= size
    if not 0 < expected <= _MAX_BYTES:
        raise ValueError(f"read_idx: {path}: the header says shape {shape}, which cannot be; {_AGAIN}")
    content = bytearray(file.read(expected))
    if len(content) < expected:
        raise ValueError(
            f"read_idx: {path}: truncated, {len(content)} bytes after the header, expected {expected} for shape "
            f"{shape}; {_AGAIN}"
        )
    if file.read(1):
        raise ValueError(f"read_idx: {path}: more bytes than the {expected} of shape {shape}; {_AGAIN}")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)
