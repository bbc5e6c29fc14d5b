"""No chain touches a byte before or behind its images and its program."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from tests import guard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux mmap and mprotect")

MODULE, COUNT = "tests.kernels.chain_guard", 60


def test_guard_page_stops_a_chain(native: Any) -> None:
    report = guard.run_child(["--overrun"], module=MODULE)
    assert report.returncode == -signal.SIGSEGV
    assert report.cases == ("overrun",)


def test_chains_stay_inside_their_buffers(native: Any) -> None:
    isas = native.isa_supported()
    report = guard.run_child(["--stop", str(COUNT), "--isa", *isas], module=MODULE)
    assert report.returncode == 0, report.message
    assert len(report.cases) == COUNT * len(isas) * len(guard.SIDES)
