"""No kernel touches a byte before or behind its buffers: x, weights, blob, residual, scales, zero points, out."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from tests import guard
from tests.kernels.test_oracle_cases import FAMILIES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux mmap and mprotect")

#: A stretch of problems that starts off the beaten path; 71 consecutive ones hold every M, 131 every N.
FIRST, COUNT = 40_000, 2_000


@pytest.mark.parametrize("side", guard.SIDES)
def test_guard_page_stops_an_overrun(side: str) -> None:
    report = guard.run_child(["--overrun", "--side", side])
    assert report.returncode == -signal.SIGSEGV
    assert report.cases == ("overrun",)


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_stay_inside_their_buffers(native: Any, family: str, side: str) -> None:
    isas = native.isa_supported()
    report = guard.run_child(
        ["--family", family, "--side", side, "--start", str(FIRST), "--stop", str(FIRST + COUNT), "--isa", *isas]
    )
    assert report.returncode == 0, report.message
    assert len(report.cases) == COUNT * len(isas)
