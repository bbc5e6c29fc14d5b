"""Where packed weights lie: on a huge page's boundary, marked for huge pages, but nothing more than the weights."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from fastcompress.ops import native, packing
from fastcompress.ops.canonical_w8 import W8Canonical

pytestmark = pytest.mark.skipif(not native.available, reason="no native module")

HUGE = 2 << 20


def weights(outputs: int) -> W8Canonical:
    values = torch.randint(-128, 128, (outputs, 1024), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    return W8Canonical(values, torch.ones(outputs, 1), None, 1024)


def flags(address: int) -> set[str]:
    """What the kernel notes about the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    return set()


@pytest.mark.parametrize("outputs", [16, 2047, 2048, 5000])
def test_weights_survive_and_are_aligned(outputs: int) -> None:
    c = weights(outputs)
    packed = packing.pack(c)
    assert packed.data_ptr() % (HUGE if packed.numel() >= HUGE else 64) == 0
    back = packing.unpack(packed)
    assert isinstance(back, W8Canonical)
    assert torch.equal(back.weight, c.weight)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_only_whole_huge_pages_are_asked_for() -> None:
    packed = packing.pack(weights(5000))
    whole = packed.numel() // HUGE
    assert whole == 2
    if not flags(packed.data_ptr()):
        pytest.skip("a kernel that does not tell the flags of mappings")
    assert "hg" in flags(packed.data_ptr())
    assert "hg" in flags(packed.data_ptr() + whole * HUGE - 1)
    assert "hg" not in flags(packed.data_ptr() + whole * HUGE)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_memory_that_is_given_back_leaves_nothing_marked() -> None:
    """Blocks of a heap would keep the mark, and give huge pages to whatever is kept there next."""

    def marked() -> int:
        return sum("hg" in line.split() for line in Path("/proc/self/smaps").read_text().splitlines())

    before = marked()
    blobs = [packing.pack(weights(count)) for count in (9000, 20000, 7000, 12000)]
    blobs.clear()
    assert marked() == before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_comes_back() -> None:
    """Packing over and over does not pile up."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    c = weights(8000)
    packing.pack(c)
    before = resident()
    for _ in range(20):
        packing.pack(c)
    assert resident() - before < 4 * 8_192_000
