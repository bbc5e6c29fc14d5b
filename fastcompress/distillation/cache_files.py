"""The files of the teacher cache: one safetensors file per sample, written whole or not at all, with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from .samples import tensor_bytes

__all__ = ["SUFFIX", "own_files", "read_entry", "write_entry"]

SUFFIX = ".safetensors"
_CHECKSUM = "<checksum>"
_OWN = re.compile(r"[0-9a-f]{40}\.safetensors|\.fastcompress-[0-9a-f]{16}\.tmp")


def own_files(directory: Path) -> Iterator[os.DirEntry[str]]:
    """The cache's files below ``directory``, leftovers of interrupted writes included."""
    pending = [str(directory)]
    while pending:
        # Another process may be clearing the cache.
        with contextlib.suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif _OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield entry


def write_entry(path: Path, tensors: Mapping[str, Tensor], max_bytes: int | None) -> int | None:
    """Write ``tensors`` to ``path`` unless the file would be larger than ``max_bytes``; its size, or None.

    There is no fsync, which would dominate the time: a file that a power cut tears is noticed by its checksum.

    Raises:
        OSError: the disk is full, the directory not writable.
    """
    named = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data = safetensors.torch.save({**named, _CHECKSUM: _checksum(named)})
    if max_bytes is not None and len(data) > max_bytes:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".fastcompress-{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(data)


def read_entry(path: Path, names: frozenset[str]) -> dict[str, Tensor] | None:
    """The tensors in ``path``, on the CPU; None if there is no such file.

    Raises:
        ValueError: the file is truncated, corrupt, or holds other names.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(str(error)) from error
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except Exception as error:  # the reader's own type for a bad header, KeyError for a dtype, and so on
        raise ValueError(f"{type(error).__name__}: {error}") from error
    checksum = tensors.pop(_CHECKSUM, None)
    if tensors.keys() != names or checksum is None or not torch.equal(checksum, _checksum(tensors)):
        raise ValueError("its checksum or its tensors' names are not what was written")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name!r}:{value.dtype}{list(value.shape)};".encode())
        digest.update(tensor_bytes(value))
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
