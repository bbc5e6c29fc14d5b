"""The child of test_chain_guard_pages.py: chains whose images and programs touch a page without any access rights.

``python -m tests.kernels.chain_guard --isa avx2 --stop 100``, as `tests.guard` does with kernels, but for both sides.
The outputs are torch's own memory.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import sys

import torch
from torch import Tensor

from fastcompress.ops.native import require
from tests.guard import SIDES, GuardedBuffers, Side
from tests.ops.chains import KINDS, Chain, assert_same_bits, batch, random_chain, residual_chain, step_by_step


def chain_of(number: int) -> Chain:
    """A random chain, now and then one that several threads share."""
    kind = KINDS[number // 10 % len(KINDS)]
    return residual_chain(number, channels=16, count=4, kind=kind) if number % 10 == 0 else random_chain(number)


def _place(buffers: GuardedBuffers, t: Tensor, alignment: int = 1) -> Tensor:
    raw = torch.from_numpy(buffers.place(t.view(torch.uint8).numpy(), read_only=True, alignment=alignment))
    return raw.view(t.dtype)


def run_case(number: int, side: Side) -> None:
    """Run a chain whose images lie channels-last, so that the kernels themselves read them."""
    chain = chain_of(number)
    steps = chain.steps()
    program, *rest = chain.arguments()
    x = batch(chain, 1 + number % 5, seed=number)
    expected = step_by_step(x.contiguous(memory_format=torch.channels_last), steps, chain.layers)
    buffers = GuardedBuffers(side)
    pixels = _place(buffers, x.permute(0, 2, 3, 1).contiguous().view(-1)).view(x.shape[0], *x.shape[2:], x.shape[1])
    torch.set_num_threads(1 + number % 3)
    found = torch.ops.fastcompress.conv2d_chain(
        pixels.permute(0, 3, 1, 2), _place(buffers, program, alignment=8), *rest
    )
    assert_same_bits(found, expected, number)
    buffers.release()


def _overrun() -> None:
    chain = residual_chain(0, channels=16, count=2)
    image = batch(chain, 1).view(-1).numpy()
    start = GuardedBuffers("end").place(image, read_only=True).ctypes.data
    two = torch.frombuffer((ctypes.c_uint8 * (2 * image.nbytes)).from_address(start), dtype=torch.float32)
    os.write(1, b"overrun\n")
    torch.ops.fastcompress.conv2d_chain(two.view(2, *chain.size, 16).permute(0, 3, 1, 2), *chain.arguments())


def main(argv: list[str]) -> int:
    """Run the cases up to ``--stop`` on both sides; ``--overrun`` has a chain read an image that is not there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--isa", nargs="*", default=[])
    parser.add_argument("--stop", type=int, default=0)
    parser.add_argument("--overrun", action="store_true")
    options = parser.parse_args(argv)
    faulthandler.enable()
    native = require("tests.kernels.chain_guard")
    if options.overrun:
        _overrun()
    for isa in options.isa:
        native.set_isa(isa)
        for number in range(options.stop):
            for side in SIDES:
                os.write(1, f"{isa} {number} {side}\n".encode())
                run_case(number, side)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
