"""Damaged and forged programs: the operator raises whatever they say, reads no other memory and wants no more of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcompress.errors import PackedBlobError
from fastcompress.ops import BlockCSR, SparseCanonical, pack
from fastcompress.ops.chain import conv2d_chain
from fastcompress.ops.chain_program import INPUT, unpack_chain
from tests.ops.cases import canonical_conv2d, canonical_linear
from tests.ops.chains import Chain, Layer, batch, plain_chain
from tests.ops.forged_chains import HEADER_BYTES, STEP_BYTES, forge, seal, write

CHAIN = torch.ops.fastcompress.conv2d_chain
FAR = (-(2**63), -(2**62), -(2**40), -(2**31), -1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1)
ERRORS = (RuntimeError, ValueError)


def _chain() -> Chain:
    """Floats, a residual of floats, bytes: `[3, 6, 7]` to `[4, 6, 7]`."""
    plain = plain_chain(3, (6, 7), (4, 3, 1), (4, 1, 0), (4, 3, 1), (4, 1, 0))
    changes: list[dict[str, Any]] = [
        {},
        {"residual": 0},
        {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7},
        {"out_dtype": torch.int8, "out_scale": 0.1, "out_zero_point": -7},
    ]
    layers = [Layer(a.kind, a.canonical, {**a.options, **b}) for a, b in zip(plain.layers, changes, strict=True)]
    return Chain(plain.channels, plain.size, plain.dtype, tuple(layers))


@pytest.fixture
def refuses(native: Any) -> Iterator[Callable[..., None]]:
    """Checks that the operator refuses a program; the good one still gives what it gave in the end."""
    chain = _chain()
    x = batch(chain, 2)
    good, *rest = chain.arguments()
    expected = CHAIN(x, good, *rest)

    def check(program: Tensor, match: str | None = None, errors: Any = ERRORS) -> None:
        with pytest.raises(errors, match=match):
            CHAIN(x, program, *rest)

    yield check
    assert torch.equal(CHAIN(x, good, *rest), expected)


@pytest.fixture
def good(native: Any) -> Tensor:
    program: Tensor = _chain().arguments()[0]
    return program


def test_every_bit_of_header_and_steps(refuses: Callable[..., None], good: Tensor) -> None:
    for position in range(HEADER_BYTES + STEP_BYTES * 4):
        for bit in range(8):
            bad = good.clone()
            bad[position] ^= 1 << bit
            refuses(bad, "packed weights: chain: ", RuntimeError)
        with pytest.raises(PackedBlobError, match="packed weights: chain: "):
            unpack_chain(bad)


def test_every_bit_of_the_headers_of_weights(refuses: Callable[..., None], good: Tensor) -> None:
    for step in unpack_chain(good):
        start = step.packed.storage_offset()
        for position in range(start, start + 256):
            bad = good.clone()
            bad[position] ^= 1 << position % 8
            refuses(bad, "packed weights: ", RuntimeError)


def test_truncations(refuses: Callable[..., None], good: Tensor) -> None:
    for size in range(0, good.numel(), 64):
        refuses(good[:size].clone(), "packed weights: chain: ", RuntimeError)
        if size >= HEADER_BYTES + STEP_BYTES * 4:  # with the size that it has now
            short = forge(good, total_bytes=size)[:size].clone()
            refuses(short, "packed weights: chain: weights outside of the buffer", RuntimeError)
    refuses(torch.cat([good, torch.zeros(64, dtype=torch.uint8)]), "its sizes are not those of the buffer")


def test_forging_works(good: Tensor) -> None:
    assert torch.equal(forge(good), good)
    assert torch.equal(forge(good, 1, stride_h=1), good)
    assert not torch.equal(forge(good, 1, stride_h=2), good)
    chain = plain_chain(3, (4, 5), (8, 1, 0), (2, 1, 0))
    x, arguments = batch(chain, 2), chain.arguments()
    again = write([step.packed for step in chain.steps()])
    assert torch.equal(again, arguments[0])
    assert torch.equal(CHAIN(x, again, *arguments[1:]), CHAIN(x, *arguments))


@pytest.mark.parametrize("step", range(4))
def test_weights_elsewhere(refuses: Callable[..., None], good: Tensor, step: int) -> None:
    offset = unpack_chain(good)[step].packed.storage_offset()
    size = good.numel()
    for place in (*FAR, 0, 64, HEADER_BYTES + STEP_BYTES * 4 - 64, offset + 4, offset + 64, size - 64, size, size + 64):
        refuses(forge(good, step, blob_offset=place), "packed weights: ", RuntimeError)
    for length in (*FAR, 0, 1, 255, 256, size):
        refuses(forge(good, step, blob_bytes=length), "packed weights: ", RuntimeError)
        refuses(forge(good, step, blob_offset=2**63 - 8, blob_bytes=length), "packed weights: ", RuntimeError)
        refuses(forge(good, step, blob_offset=size, blob_bytes=length), "packed weights: ", RuntimeError)


@pytest.mark.parametrize("step", range(4))
def test_values_that_are_not_there_yet(refuses: Callable[..., None], good: Tensor, step: int) -> None:
    later = "packed weights: chain: a convolution reads what comes after it"
    for value in (*(value for value in FAR if value != INPUT), -2, step, step + 1, 4, 1024):
        refuses(forge(good, step, input=value), later, RuntimeError)
        if value != -2:  # no residual
            refuses(forge(good, step, residual=value), later, RuntimeError)


@pytest.mark.parametrize("name", ["input", "residual"])
def test_values_that_are_not_there_yet_in_plain_torch(good: Tensor, name: str) -> None:
    chain = _chain()
    for value in (-3, 1, 4, 2**40):
        with pytest.raises(PackedBlobError):
            conv2d_chain(batch(chain, 2), forge(good, 1, **{name: value}), *chain.arguments()[1:])


def test_residuals_that_cannot_be_added(refuses: Callable[..., None], good: Tensor) -> None:
    text = "adds a value of another shape, or one of integers"
    refuses(forge(good, 0, residual=INPUT), f"convolution 0 {text}", ValueError)  # 3 channels and 4
    refuses(forge(good, 3, residual=2), f"convolution 3 {text}", ValueError)  # bytes
    strided = forge(good, 1, stride_h=2, residual=-2)
    refuses(forge(strided, 2, residual=0), f"convolution 2 {text}", ValueError)


def test_inputs_that_cannot_be_read(refuses: Callable[..., None], good: Tensor) -> None:
    refuses(forge(good, 1, input=INPUT), "convolution 1 takes 4 channels, gets 3", ValueError)
    refuses(forge(good, 2, out_dtype=4, out_zero_point=0), "convolution 3 gets int8 images", ValueError)
    x = torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8)
    program = forge(forge(good, 0, residual=INPUT), 1, residual=INPUT)
    with pytest.raises(ValueError, match="convolution 0 adds a value of another shape, or one of integers"):
        CHAIN(x, program, *_chain().arguments()[1:])


@pytest.mark.parametrize("step", range(4))
def test_absurd_geometry(refuses: Callable[..., None], good: Tensor, step: int) -> None:
    for name in ("stride_h", "stride_w", "dilation_h", "dilation_w"):
        for value in (*FAR, 0):
            refuses(forge(good, step, **{name: value}), r"conv2d_w8a8: (stride|dilation) is -?\d+, allowed", ValueError)
    for name in ("pad_top", "pad_bottom", "pad_left", "pad_right"):
        for value in FAR:
            refuses(forge(good, step, **{name: value}), r"conv2d_w8a8: padding is -?\d+, allowed", ValueError)
        for value in (1, 2**20, 2**31 - 1):
            refuses(forge(good, step, **{name: value + 4}), errors=ValueError)
    for name in ("stride_h", "stride_w"):
        for value in (2, 2**31 - 1):
            refuses(forge(good, step, **{name: value}), errors=ValueError)
    if step % 2 == 0:  # the 3x3 ones
        for value in (4, 2**31 - 1):
            text = f"convolution {step} has a kernel that is larger than its padded input"
            refuses(forge(good, step, dilation_h=value, dilation_w=value), text, ValueError)


def test_output_types_scales_and_zero_points(refuses: Callable[..., None], good: Tensor) -> None:
    for step in range(4):
        for code in (-(2**31), -1, 5, 6, 255, 2**31 - 1):
            refuses(forge(good, step, out_dtype=code), "packed weights: chain: no such output type", RuntimeError)
    text = "packed weights: chain: an output's scale or zero point is out of range"
    for step in (2, 3):
        for scale in (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-40, -1e-40):
            refuses(forge(good, step, out_scale=scale), text, RuntimeError)
    for step, low in ((2, 0), (3, -128)):
        for zero in (low - 1, low + 256, 2**31 - 1, -(2**31)):
            refuses(forge(good, step, out_zero_point=zero), text, RuntimeError)


def test_numbers_of_steps_and_bytes(refuses: Callable[..., None], good: Tensor) -> None:
    fit = (good.numel() - HEADER_BYTES) // STEP_BYTES
    for steps in (*FAR, 0, fit + 1, 1025, 2**56 + 1):
        for sealed in (forge(good, steps=steps), seal(forge(good, steps=steps), max(0, min(steps, fit)))):
            refuses(sealed, "packed weights: chain: ", RuntimeError)
    for steps in range(1, fit + 1):
        if steps != 4:  # what follows the table are weights, and fewer steps give another output or another type
            refuses(seal(forge(good, steps=steps), steps))
    for size in (*FAR, 0, 63, 64, good.numel() - 1, good.numel() + 64):
        refuses(forge(good, total_bytes=size), "packed weights: chain: its sizes are not those", RuntimeError)
    for version in (0, 2, -1):
        refuses(forge(good, version=version), "packed weights: chain: layout version", RuntimeError)
    refuses(forge(good, magic=0x4B504346), "packed weights: chain: not the program of a chain", RuntimeError)


def test_layers_that_are_no_int8_convolutions(native: Any) -> None:
    floats = pack(SparseCanonical(BlockCSR.from_dense(torch.ones(16, 2), (1, 1)), None, kernel_size=(1, 1)))
    conv = pack(canonical_conv2d(16, kernel=(1, 1)))
    x = torch.ones(1, 2, 3, 3)
    CHAIN(x, write([conv]), 16, [0, 1], [0, 1], torch.float32)
    for blob in (pack(canonical_linear(16, 2)), floats):
        for blobs in ([blob], [conv, blob]):
            with pytest.raises(RuntimeError, match="packed weights: chain: a layer in it is no int8 convolution"):
                CHAIN(x, write(blobs), 16, [0, 1], [0, 1], torch.float32)


_LARGE = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from tests.ops.chains import batch, plain_chain
from tests.ops.forged_chains import forge
CHAIN = torch.ops.fastcompress.conv2d_chain
chain = plain_chain(3, (6, 6), (3, 1, 0), (4, 1, 0))
program, *rest = chain.arguments()
for threads, images in ((1, 1), (2, 1), (3, 5), (2, 40)):
    torch.set_num_threads(threads)
    x = batch(chain, images)
    expected = CHAIN(x, program, *rest)
    for side in (2**15, 2**18, 2**19, 2**30, 2**31 - 7):
        step = (5 + 2 * side) // 5  # as many outputs as without padding
        padded = forge(program, 0, pad_top=side, pad_bottom=side, pad_left=side, pad_right=side)
        try:
            CHAIN(x, forge(padded, 1, stride_h=step, stride_w=step), *rest)
        except (MemoryError, ValueError) as error:
            print(side, type(error).__name__)
        else:
            sys.exit("no error")
    assert torch.equal(CHAIN(x, program, *rest), expected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_more_memory_than_there_is(native: Any) -> None:
    """A padding that a later stride takes back is no contradiction, but asks for terabytes between the two."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _LARGE],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one = "32768 MemoryError\n262144 MemoryError\n" + "".join(f"{n} ValueError\n" for n in (2**19, 2**30, 2**31 - 7))
    assert done.stdout == 4 * one
