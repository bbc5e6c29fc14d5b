"""Buffers that touch an inaccessible page: a kernel that reads or writes one byte outside dies and is noticed.

`GuardedBuffers.place` copies an array so that it ends exactly at (``side="end"``) or begins exactly after
(``side="start"``) a page without any access rights. Inputs become read-only pages, so writing to an input dies as well.

A crash must be a failing test and not the end of the test run, so the cases run in a child process:
``python -m tests.guard --family linear_w8a8 --side end --start 0 --stop 500 --isa avx2 avx512``. The child writes ISA
and number of the case that it is about to run; when it dies, the last line names the culprit.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import mmap
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIDES", "ChildReport", "GuardedBuffers", "Side", "run_child"]

Side = Literal["start", "end"]
SIDES: tuple[Side, ...] = ("start", "end")
_PAGE = mmap.PAGESIZE
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_PRIVATE, _MAP_ANONYMOUS = 0x02, 0x20

Array = NDArray[Any]


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


@dataclass
class GuardedBuffers:
    """Arrays between inaccessible pages; `release` unmaps them all (they must not be used afterwards)."""

    side: Side
    _maps: list[tuple[int, int]] = field(default_factory=list)
    _lib: ctypes.CDLL = field(default_factory=_libc)

    def place(self, a: Array, read_only: bool, alignment: int = 1) -> Array:
        """A copy of ``a`` that touches a forbidden page, or is fewer than ``alignment`` bytes away from it."""
        inner = max(_PAGE, -(-a.nbytes // _PAGE) * _PAGE)
        base = self._lib.mmap(None, inner + 2 * _PAGE, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap failed")
        self._maps.append((base, inner + 2 * _PAGE))
        self._protect(base + _PAGE, inner, _PROT_READ | _PROT_WRITE)
        start = base + _PAGE
        if self.side == "end":
            start = (base + _PAGE + inner - a.nbytes) // alignment * alignment
        memory = (ctypes.c_uint8 * a.nbytes).from_address(start)
        placed = np.frombuffer(memoryview(memory), dtype=a.dtype).reshape(a.shape)
        placed[...] = a
        if read_only:
            self._protect(base + _PAGE, inner, _PROT_READ)
        return placed

    def _protect(self, address: int, size: int, rights: int) -> None:
        if self._lib.mprotect(address, size, rights) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")

    def release(self) -> None:
        """Unmap everything."""
        for base, size in self._maps:
            self._lib.munmap(base, size)
        self._maps.clear()


@dataclass(frozen=True)
class ChildReport:
    """How a child run ended: its exit code, the cases that it began as "isa number", its last words."""

    returncode: int
    cases: tuple[str, ...]
    stderr: str

    @property
    def message(self) -> str:
        """For the assertion."""
        where = f"in case {self.cases[-1]}" if self.cases else "before the first case"
        return f"child ended with {self.returncode} {where}\n{self.stderr[-3000:]}"


def run_child(arguments: list[str], timeout: float = 300.0, module: str = "tests.guard") -> ChildReport:
    """Run ``python -m module`` with arguments; never raises for a crash."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"},  # threads outnumber cores
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return ChildReport(done.returncode, tuple(done.stdout.splitlines()), done.stderr)


def _run_case(native: Any, case: Any, side: Side, threads: int) -> None:
    """Run one `tests.kernels.runner.Case` with every buffer, inputs and outputs, next to a forbidden page."""
    from dataclasses import replace

    from tests.kernels import runner

    buffers = GuardedBuffers(side)
    arguments = {
        name: buffers.place(value, read_only=True) if isinstance(value, np.ndarray) else value
        for name, value in case.arguments.items()
    }
    guarded = replace(case, inputs=tuple(buffers.place(a, read_only=True) for a in case.inputs), arguments=arguments)
    packed = None
    if case.pack is not None:
        pack = [buffers.place(a, read_only=True) if isinstance(a, np.ndarray) else a for a in case.pack]
        packed = buffers.place(getattr(native, case.packer)(*pack), read_only=True, alignment=64)
        native.blob_check(packed)
        getattr(native, f"un{case.packer}")(packed)
    out = {name: buffers.place(a, read_only=False) for name, a in case.new_outputs().items()}
    guarded.call(native, packed, out, threads)
    for name, expected in case.expected.items():
        wrong = runner.check(expected, out[name].copy())
        if wrong:
            raise AssertionError(f"{name}: {wrong}\n{case.label}")
    buffers.release()


def main(argv: list[str]) -> int:
    """Run the cases ``--start`` to ``--stop``; ``--overrun`` reads one byte too many, to prove that the guard bites."""
    from tests.kernels.families import FAMILIES

    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=sorted(FAMILIES), default="linear_w8a8")
    parser.add_argument("--isa", nargs="*", default=[])
    parser.add_argument("--side", choices=SIDES, default="end")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--stop", type=int, default=0)
    parser.add_argument("--overrun", action="store_true")
    options = parser.parse_args(argv)
    faulthandler.enable()
    if options.overrun:
        buffers = GuardedBuffers(options.side)
        a = buffers.place(np.arange(100, dtype=np.uint8), read_only=True)
        os.write(1, b"overrun\n")
        outside = a.ctypes.data + (100 if options.side == "end" else -1)
        return int(ctypes.c_uint8.from_address(outside).value)
    from fastcompress.ops.native import require

    native = require("tests.guard")
    make, build = FAMILIES[options.family]
    cases = [build(make(index)) for index in range(options.start, options.stop)]
    for isa in options.isa:
        native.set_isa(isa)
        for number, case in enumerate(cases):
            os.write(1, f"{isa} {options.start + number}\n".encode())
            _run_case(native, case, options.side, 1 + number % 3)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
