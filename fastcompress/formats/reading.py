"""The two files of a checkpoint, opened as a pair and read with every size checked first."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from torch import Tensor

from fastcompress.errors import CheckpointError
from fastcompress.formats.manifest import MANIFEST_NAME, Manifest
from fastcompress.formats.tensorfile import read_header, read_tensors

__all__ = ["open_pair", "open_regular", "read_manifest", "read_tensor_file"]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without buffers of its own; ``OSError`` for a pipe, a device or a directory."""
    # O_NONBLOCK: a pipe in the file's place must not block the open.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("is not a regular file")
    return cast(BinaryIO, os.fdopen(descriptor, "rb", buffering=0))


def read_manifest(directory: Path) -> Manifest:
    """Read and check ``fastcompress.json``; every fault is a `CheckpointError`."""
    path = directory / MANIFEST_NAME
    try:
        with open_regular(path) as file:
            return Manifest.from_bytes(file.read())
    except FileNotFoundError:
        raise CheckpointError(f"load: {path}: no such file; give a directory that fastcompress.save wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load: {path}: {error}") from None


def _read_again(directory: Path, manifest: Manifest, error: OSError) -> Manifest:
    again = read_manifest(directory)
    if isinstance(error, FileNotFoundError) and again.tensor_file != manifest.tensor_file:
        return again
    missing = f"no such file, {MANIFEST_NAME} names it; copy both files"
    problem = missing if isinstance(error, FileNotFoundError) else str(error)
    raise CheckpointError(f"load: {directory / manifest.tensor_file}: {problem}") from None


@contextlib.contextmanager
def open_pair(directory: Path) -> Iterator[tuple[Manifest, BinaryIO]]:
    """Yield the manifest and its tensor file, open for reading."""
    manifest = read_manifest(directory)
    try:
        file = open_regular(directory / manifest.tensor_file)
    except OSError as error:
        # A save may have replaced both files since the JSON was read; the new pair is then complete.
        manifest = _read_again(directory, manifest, error)
        file = open_regular(directory / manifest.tensor_file)
    with file:
        yield manifest, file


def read_tensor_file(file: BinaryIO, manifest: Manifest) -> dict[str, Tensor]:
    """Read the tensors after comparing size and header with the manifest, and compare the checksum.

    Raises:
        ValueError: the message names the tensor.
    """
    size = os.fstat(file.fileno()).st_size
    if size != manifest.tensor_file_bytes:
        raise ValueError(
            f"the file has {size} bytes, {MANIFEST_NAME} says {manifest.tensor_file_bytes}; it is truncated or replaced"
        )
    infos, head = read_header(file, size)
    found = {name: (info.dtype, info.shape) for name, info in infos.items()}
    for name in sorted(found.keys() ^ manifest.tensors.keys()):
        where = "this file" if name in found else MANIFEST_NAME
        raise ValueError(f"tensor {name!r:.200}: is in {where} only")
    for name, expected in manifest.tensors.items():
        if found[name] != expected:
            raise ValueError(f"tensor {name!r:.200}: is {found[name]} in this file, {expected} in {MANIFEST_NAME}")
    tensors, sha256 = read_tensors(file, infos, head)
    if sha256 != manifest.tensor_file_sha256:
        raise ValueError(f"the SHA-256 of the file is not the one in {MANIFEST_NAME}; its tensors are corrupt")
    return tensors
