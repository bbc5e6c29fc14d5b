"""Operand rotation: bandwidth-bound work must not find its weights in a cache that a real model would have emptied."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["copies_needed", "last_level_cache_bytes", "rotate"]

T = TypeVar("T")

#: Never use more memory than this share of what is free, whatever the cache claims to be (virtual machines exaggerate).
MEMORY_SHARE = 0.25


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of the largest cache that the system reports, 32 MiB where it reports none."""
    sizes = [32 << 20] if not root.exists() else []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=32 << 20)


def free_memory_bytes() -> int:
    """Return the memory that is available without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def copies_needed(operand_bytes: int, cache_bytes: int | None = None, free_bytes: int | None = None) -> int:
    """Return how many copies of an operand exceed the last-level cache twice, within a quarter of the free memory."""
    cache = last_level_cache_bytes() if cache_bytes is None else cache_bytes
    free = free_memory_bytes() if free_bytes is None else free_bytes
    wanted = -(-2 * cache // operand_bytes) + 1
    return max(2, min(wanted, int(free * MEMORY_SHARE) // operand_bytes))


def rotate(copies: Sequence[T], call: Callable[[T], object]) -> Callable[[], object]:
    """Return a call without arguments that uses the next of ``copies`` each time."""
    ring = itertools.cycle(copies)
    return lambda: call(next(ring))
