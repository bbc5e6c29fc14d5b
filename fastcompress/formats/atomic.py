"""Files that appear whole or not at all: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

__all__ = ["directory_lock", "fsync_directory", "is_temporary", "publish", "temporary_file"]

_TEMPORARY = re.compile(r"\.fastcompress-[0-9a-f]{16}\.tmp")


def is_temporary(name: str) -> bool:
    """Whether `temporary_file` made a file of this name."""
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def temporary_file(directory: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file in ``directory`` for writing; it is removed at the end unless `publish` renamed it."""
    path = directory / f".fastcompress-{secrets.token_hex(8)}.tmp"
    # os.open rather than mkstemp: the finished file gets the user's usual permissions, not 0600.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield cast(BinaryIO, file), path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def fsync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` survive a power cut; does nothing where directories cannot be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(file: BinaryIO, temporary: Path, final: Path) -> None:
    """Flush ``file`` (open on ``temporary``) to the disk, close it and rename it to ``final``."""
    file.flush()
    os.fsync(file.fileno())
    file.close()  # before the rename: Windows refuses to rename open files
    os.replace(temporary, final)
    fsync_directory(final.parent)


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold an advisory lock on ``directory``, so that two saves to one place take turns (POSIX; elsewhere no lock)."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems know no locks; saving there works, one writer at a time is then up to the user.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
