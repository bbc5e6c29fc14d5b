"""What `pack_chain` refuses, and what ``conv2d_chain`` says to arguments that are not those of its program."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcompress.errors import PackedBlobError
from fastcompress.ops import BlockCSR, SparseCanonical, pack
from fastcompress.ops.chain import conv2d_chain, conv2d_chain_fake
from fastcompress.ops.chain_program import INPUT, ChainStep, pack_chain, unpack_chain
from tests.ops.cases import canonical_conv2d, canonical_linear
from tests.ops.chains import batch, plain_chain

CHAIN = torch.ops.fastcompress.conv2d_chain
PACKED = pack(canonical_conv2d(2))


def _damaged(place: int) -> Tensor:
    bad = PACKED.clone()
    bad[place] ^= 1
    return bad


def _refused(error: type[Exception], text: str, *steps: Any) -> None:
    with pytest.raises(error, match=text):
        pack_chain(steps)


def test_pack_chain_refuses_weights(native: Any) -> None:
    floats = pack(SparseCanonical(BlockCSR.from_dense(torch.ones(16, 9), (1, 1)), None, "silu", (3, 3)))
    good = ChainStep(PACKED)
    for error, text, packed in (
        (TypeError, "pack_chain: `packed` must be a torch.Tensor, got NoneType", None),
        (TypeError, "pack_chain: step 1: `packed` is torch.int8 on cpu", PACKED.view(torch.int8)),
        (TypeError, "pack_chain: step 1: `packed` is torch.uint8 on meta", PACKED.to("meta")),
        (ValueError, "pack_chain: step 1: `packed` holds a linear_w8a8 layer", pack(canonical_linear())),
        (ValueError, "pack_chain: step 1: `packed` holds a conv2d_bsr layer", floats),
        (PackedBlobError, "checksum", _damaged(40)),
        (PackedBlobError, "truncated or extended", PACKED[:-1]),
        (PackedBlobError, "shorter than the 256-byte header", PACKED[:0]),
        (PackedBlobError, "expected one dimension", PACKED.view(2, -1)),
        (PackedBlobError, "magic", torch.zeros(400, dtype=torch.uint8)),
    ):
        _refused(error, text, good, ChainStep(packed))  # type: ignore[arg-type]


def test_pack_chain_refuses_numbers_of_steps_and_what_comes_later(native: Any) -> None:
    _refused(ValueError, "a chain has 1 to 1024 steps, got 0")
    _refused(ValueError, "a chain has 1 to 1024 steps, got 1025", *[ChainStep(PACKED)] * 1025)
    for value in (1, 2, -2, 2**40, -(2**70)):
        for name in ("input", "residual"):
            text = f"pack_chain: step 1: `{name}` is {value}, allowed: -1 to 0"
            _refused(ValueError, text, ChainStep(PACKED), ChainStep(PACKED, **{name: value}))  # type: ignore[arg-type]
    pack_chain([ChainStep(PACKED), ChainStep(PACKED, input=INPUT, residual=0)])


def test_pack_chain_refuses_outputs(native: Any) -> None:
    for dtype in (torch.int32, torch.float64, torch.bool, None):
        _refused(TypeError, f"step 0: `out_dtype` is {dtype}, allowed", ChainStep(PACKED, out_dtype=dtype))  # type: ignore[arg-type]
    for dtype, low in ((torch.uint8, 0), (torch.int8, -128)):
        for scale in (float("nan"), float("inf"), 0.0, -1.0, 1e-40, 1e-46, 1e39, 1e300):
            _refused(ValueError, "`out_scale` must be positive", ChainStep(PACKED, out_dtype=dtype, out_scale=scale))
        for zero in (low - 1, low + 256, 2**31, 2**32 + low, -(2**40)):
            text = re.escape(f"`out_zero_point` must lie in [{low}, {low + 255}], got {zero}")
            _refused(ValueError, text, ChainStep(PACKED, out_dtype=dtype, out_zero_point=zero))
        pack_chain([ChainStep(PACKED, out_dtype=dtype, out_zero_point=low)])


@pytest.mark.parametrize("options", [{"out_scale": 1e300}, {"out_zero_point": 2**40}, {"out_scale": float("nan")}])
def test_scale_and_zero_point_of_floats_do_not_matter(native: Any, options: dict[str, Any]) -> None:
    """As in ``conv2d_w8a8``: they are those of integer outputs."""
    x = torch.ones(1, 2, 5, 5)
    geometry = (2, [3, 3], [1, 1], [0, 0, 0, 0], [1, 1])
    expected = torch.ops.fastcompress.conv2d_w8a8(x, PACKED, *geometry, None, torch.float32, **options)
    found = CHAIN(x, pack_chain([ChainStep(PACKED, **options)]), 2, [-2, 1], [-2, 1], torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": (1,)},
        {"stride": (2,), "dilation": (1, 1, 1)},  # as many numbers as there should be, each in another's place
        {"padding": (1, 1), "stride": (1, 1, 0, 0)},
        {"stride": (2**63, 1)},
        {"dilation": (1.5, 1)},
    ],
    ids=str,
)
def test_pack_chain_refuses_geometry(native: Any, geometry: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        pack_chain([ChainStep(PACKED, **geometry)])


def test_unpack_chain_refuses(native: Any) -> None:
    program = pack_chain([ChainStep(PACKED)])
    for bad in (None, program.float(), program.view(torch.int8)):
        with pytest.raises(TypeError, match="conv2d_chain: `program` must be a uint8 tensor"):
            unpack_chain(bad)  # type: ignore[arg-type]
    for bad in (program[:0], program[:63], program[:-64], program.view(2, -1), PACKED, torch.cat([program, program])):
        with pytest.raises(PackedBlobError, match=r"packed weights: chain: .* freeze the model again"):
            unpack_chain(bad)


def test_unpack_chain_refuses_a_scalar(native: Any) -> None:
    with pytest.raises(PackedBlobError, match=r"packed weights: chain: .* freeze the model again"):
        unpack_chain(torch.tensor(3, dtype=torch.uint8))


@pytest.fixture
def call() -> tuple[Tensor, list[Any]]:
    """Images and the other arguments of a good call."""
    chain = plain_chain(3, (6, 7), (4, 3, 1), (8, 3, 0))
    return batch(chain, 2), list(chain.arguments())


def test_other_arguments_than_the_program_has(native: Any, call: tuple[Tensor, list[Any]]) -> None:
    x, good = call
    CHAIN(x, *good)
    far = [0, 1, 2**31, 2**40, 2**40 + 1, 2**62, 2**63 - 1]
    values: dict[int, list[Any]] = {
        1: [7, 9, 0, -8, 2**40, 2**63 - 1, -(2**63)],
        4: [torch.float64, torch.bfloat16, torch.uint8, torch.int32, torch.bool, torch.complex64],
    }
    for place in (2, 3):
        values[place] = [[], [0], [-2, 1, 1], [-1, 1], [-3, 1], [-2, 2], [-2, 0], [-2, -1], [5, -1]]
        values[place] += [[sign * offset, step] for offset in far for sign in (1, -1) for step in (-1, 0, 1, 2**62)]
    for place, bad in values.items():
        for value in bad:
            arguments = [*good]
            arguments[place] = value
            with pytest.raises(ValueError, match="conv2d_chain: "):
                CHAIN(x, *arguments)
            with pytest.raises((ValueError, RuntimeError)):
                conv2d_chain(x, *arguments)
    # Another way to say the same sizes is as good.
    assert torch.equal(CHAIN(x, good[0], 8, [2, 2], [3, 2], torch.float32), CHAIN(x, *good))


def test_images_that_the_chain_does_not_take(native: Any, call: tuple[Tensor, list[Any]]) -> None:
    x, good = call
    for dtype in (torch.float64, torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(
            RuntimeError, match=r"conv2d_chain: input has dtype .*allowed: float32, bfloat16, float16, uint8"
        ):
            CHAIN(x.to(dtype), *good)
    for shape in ((), (3,), (6, 7), (1, 2, 3, 6, 7)):
        for form in (CHAIN, conv2d_chain, conv2d_chain_fake):
            with pytest.raises(ValueError, match=r"conv2d_chain: `?input`? must be \[N, C, H, W\] or \[C, H, W\], got"):
                form(torch.ones(shape), *good)
    for channels in (0, 1, 2, 4, 300):
        with pytest.raises(ValueError, match=f"conv2d_chain: convolution 0 takes 3 channels, gets {channels}"):
            CHAIN(torch.ones(2, channels, 6, 7), *good)
    for empty in ((2, 3, 0, 7), (2, 3, 6, 0), (3, 0, 0), (0, 3, 0, 0)):
        with pytest.raises(ValueError, match=r"conv2d_w8a8: input (height|width) is 0, allowed: 1 to"):
            CHAIN(torch.ones(empty), *good)
    for size in ((1, 1), (2, 7), (6, 2)):
        with pytest.raises(
            ValueError, match="conv2d_chain: convolution 1 has a kernel that is larger than its padded input"
        ):
            CHAIN(torch.ones(2, 3, *size), *good)


def test_a_convolution_in_the_middle_that_does_not_fit(native: Any) -> None:
    """Later padding makes the last size positive again, as the window says: there is no such image all the same."""
    chain = plain_chain(3, (9, 9), (4, 7, 0), (4, 3, 4))
    arguments = chain.arguments()
    assert CHAIN(batch(chain, 1), *arguments).shape == (1, 4, 9, 9)
    for form in (CHAIN, conv2d_chain):
        with pytest.raises(ValueError, match=r"larger than its padded input|smaller than the kernel"):
            form(torch.ones(1, 3, 5, 5), *arguments)


def test_tensors_that_are_no_program(native: Any, call: tuple[Tensor, list[Any]]) -> None:
    x, (program, *rest) = call
    for bad in (program.float(), program.view(torch.int8)):
        with pytest.raises(RuntimeError, match=r"conv2d_chain: .* has dtype .* allowed: uint8"):
            CHAIN(x, bad, *rest)
    for bad in (program[0], program.view(2, -1), torch.stack([program, program], 1)[:, 0], program.expand(2, -1)):
        with pytest.raises(ValueError, match=r"conv2d_chain: .* must be 1-D and contiguous"):
            CHAIN(x, bad, *rest)
    for bad in (
        program[:0],
        program[:1],
        program[64:],
        PACKED,
        torch.zeros_like(program),
        torch.cat([program, program]),
    ):
        with pytest.raises(RuntimeError, match=r"packed weights: chain: .* freeze the model again"):
            CHAIN(x, bad, *rest)
    for shift in range(1, 8):
        memory = torch.zeros(program.numel() + 8, dtype=torch.uint8)
        memory[shift : shift + program.numel()] = program
        with pytest.raises(RuntimeError, match="packed weights: chain: not aligned to 8 bytes"):
            CHAIN(x, memory[shift : shift + program.numel()], *rest)


def test_programs_of_another_isa(native: Any) -> None:
    chain = plain_chain(3, (6, 7), (4, 3, 1), (8, 3, 0))
    x = batch(chain, 2)
    names = native.isa_supported()
    refused = 0
    for made_for in names:
        native.set_isa(made_for)
        arguments, steps = chain.arguments(), chain.steps()
        for run_on in names:
            native.set_isa(run_on)
            if run_on == made_for:
                CHAIN(x, *arguments)
                continue
            mixed = pack_chain([chain.steps()[0], steps[1]])  # the second one's weights are foreign
            for program in (arguments[0], mixed):
                with pytest.raises(
                    RuntimeError, match=f"packed weights: made for ISA '{made_for}'.*'{run_on}'; freeze"
                ):
                    CHAIN(x, program, *arguments[1:])
                refused += 1
    assert refused == 2 * len(names) * (len(names) - 1)
