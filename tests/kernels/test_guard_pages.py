"""No kernel touches a byte before or behind its buffers: x, weights, blob, residual, scales, zero points, out.

Layers with weights in groups have an operator only, whose output is torch's memory: all but `out` is guarded.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from tests import guard
from tests.kernels.families import FAMILIES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux mmap and mprotect")

#: A stretch of problems that starts off the beaten path; 71 consecutive ones hold every M, 131 every N.
FIRST = 40_000


def _count(family: str) -> int:
    """Those of block-sparse layers: 41 consecutive hold every small M, 73 every N; their nine families share code.

    Of weights in groups 61 hold every M, 71 every N.
    """
    return 2_000 if family in ("linear_w8a8", "conv2d_w8a8", "quantize") else 600


@pytest.mark.parametrize("side", guard.SIDES)
def test_guard_page_stops_an_overrun(side: str) -> None:
    report = guard.run_child(["--overrun", "--side", side])
    assert report.returncode == -signal.SIGSEGV
    assert report.cases == ("overrun",)


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_stay_inside_their_buffers(native: Any, family: str, side: str) -> None:
    isas, count = native.isa_supported(), _count(family)
    report = guard.run_child(
        ["--family", family, "--side", side, "--start", str(FIRST), "--stop", str(FIRST + count), "--isa", *isas]
    )
    assert report.returncode == 0, report.message
    assert len(report.cases) == count * len(isas)
