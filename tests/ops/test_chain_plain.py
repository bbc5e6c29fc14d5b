"""The plain-torch form of ``conv2d_chain``, its windows and its programs, against the operator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcompress.ops import reference, reference_layout
from fastcompress.ops.chain import Window, conv2d_chain, conv2d_chain_fake
from fastcompress.ops.chain_program import pack_chain, unpack_chain
from fastcompress.ops.checks import conv_output_size
from fastcompress.ops.reference import memory_format
from tests.ops.cases import rng
from tests.ops.chains import FORMS, Chain, assert_same_bits, batch, plain_chain, random_chain

OPS = torch.ops.fastcompress
SEEDS = range(2000, 2040)


class _ReferenceKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Convolutions run in plain torch, as where there are no native kernels."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        called = reference.conv2d_w8a8 if func is OPS.conv2d_w8a8.default else func
        return called(*args, **(kwargs or {}))


def _images(chain: Chain, seed: int) -> torch.Tensor:
    return batch(chain, seed % 3 + 1, FORMS[seed % len(FORMS)], seed, wild=seed % 3 == 0)


def test_plain_form_on_native_programs(native: Any) -> None:
    for seed in SEEDS:
        chain = random_chain(seed)
        x, arguments = _images(chain, seed), chain.arguments()
        found, expected = conv2d_chain(x, *arguments), OPS.conv2d_chain(x, *arguments)
        assert_same_bits(found, expected, seed)
        if found.shape[-3] > 1 and found.shape[-1] * found.shape[-2] > 1:  # else see the last test
            format_of = memory_format if found.dim() == 4 else lambda t: memory_format(t.unsqueeze(0))
            assert format_of(found) is format_of(expected), seed


def test_plain_form_on_programs_of_reference_blobs(native: Any) -> None:
    for seed in SEEDS:
        chain = random_chain(seed)
        x, arguments = _images(chain, seed), chain.arguments(reference_layout.encode)
        with _ReferenceKernels():  # type: ignore[no-untyped-call]
            found = conv2d_chain(x, *arguments)
        assert_same_bits(found, OPS.conv2d_chain(x, *chain.arguments()), seed)
        with pytest.raises(RuntimeError, match="packed weights"):
            OPS.conv2d_chain(x, *arguments)


_WITHOUT_NATIVE = """
import sys, torch
from fastcompress.ops import native, reference_layout
from tests.ops.chains import assert_same_bits, batch, random_chain
assert not native.available
for seed, expected in torch.load(sys.argv[1]).items():
    chain = random_chain(seed)
    found = torch.ops.fastcompress.conv2d_chain(batch(chain, 2, seed=seed), *chain.arguments())
    assert_same_bits(found, expected, seed)
print("same")
"""


def test_operator_without_native_kernels(native: Any, tmp_path: Path) -> None:
    expected = {}
    for seed in SEEDS[:20]:
        chain = random_chain(seed)
        expected[seed] = OPS.conv2d_chain(batch(chain, 2, seed=seed), *chain.arguments())
    torch.save(expected, tmp_path / "expected.pt")
    root = Path(__file__).resolve().parents[2]
    environment = {"FASTCOMPRESS_DISABLE_NATIVE": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NATIVE, str(tmp_path / "expected.pt")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_fake_form_says_what_the_operator_gives(native: Any) -> None:
    for seed in SEEDS:
        chain = random_chain(seed)
        x, arguments = _images(chain, seed), chain.arguments()
        found, expected = conv2d_chain_fake(x, *arguments), OPS.conv2d_chain(x, *arguments)
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride()), seed


def test_windows_are_those_of_the_convolutions() -> None:
    g = rng(7)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    checked = 0
    for _ in range(300):
        axes = [(draw(1, 7), draw(1, 5), draw(0, 6), draw(0, 6), draw(1, 4)) for _ in range(draw(0, 7))]
        window = Window()
        for axis in axes:
            window = window.then(*axis)
        for size in range(1, 120, 7):
            expected = size
            for axis in axes:
                expected = conv_output_size(
                    expected, *axis
                )  # below 1 where it does not fit: the formula holds there too
            assert (size + window.offset) // window.step == expected, (axes, size)
            checked += expected > 0
    assert checked > 1000


def test_programs_hold_their_steps() -> None:
    for seed in range(50):
        steps = random_chain(seed).steps()
        program = pack_chain(steps)
        assert program.dtype == torch.uint8
        assert program.dim() == 1
        back = unpack_chain(program)
        assert len(back) == len(steps)
        for one, two in zip(steps, back, strict=True):
            assert torch.equal(one.packed, two.packed)
            assert two.packed.untyped_storage().data_ptr() == program.untyped_storage().data_ptr()
            assert two.packed.data_ptr() % 64 == program.data_ptr() % 64
            if not one.out_dtype.is_floating_point:
                assert two.out_scale == float(torch.tensor(one.out_scale, dtype=torch.float32))
                assert two.out_zero_point == one.out_zero_point
            names = ("stride", "padding", "dilation", "input", "residual", "out_dtype")
            assert [getattr(one, name) for name in names] == [getattr(two, name) for name in names]
        assert torch.equal(pack_chain(back), program)


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_format_of_one_image(native: Any, channels: int) -> None:
    """With one channel the values of both orders lie alike, and only strides say which it is."""
    chain = plain_chain(3, (4, 5), (5, 3, 1), (channels, 3, 1))
    x, arguments = batch(chain, 1, "channels_last"), chain.arguments()
    for form in (OPS.conv2d_chain, conv2d_chain_fake, conv2d_chain):
        assert memory_format(form(x, *arguments)) is torch.channels_last, form
