"""Four-bit weights: round trips, the operator against NumPy and against its plain-torch form, refusals."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.errors import PackedBlobError
from fastcompress.ops import W4Canonical, check, info, native, pack, reference, reference_groups, unpack
from fastcompress.ops.blob_checksum import blob_checksum
from fastcompress.ops.canonical_w4 import pack_nibbles, unpack_nibbles
from fastcompress.ops.rounding import round_to_nearest
from tests.ops.cases import rng

#: Where the header (blob.h) says how large a group is.
GROUP_SIZE_AT = 200

KINDS = ("eight", "zero point", "minimum")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Rows, inputs, outputs, group size: tails of every kind.
SHAPES = [
    (1, 128, 16, 32),
    (1, 1, 1, 1),
    (2, 31, 17, 31),
    (3, 40, 33, 16),
    (4, 100, 70, 32),
    (5, 264, 64, 64),
    (6, 64, 130, 8),
    (7, 520, 48, 128),
    (13, 96, 65, 96),
    (40, 72, 80, 24),
]


def canonical(out: int, inputs: int, group: int, kind: str, seed: int = 0, **changes: Any) -> W4Canonical:
    g = rng(seed)
    groups = -(-inputs // group)
    scale = (torch.rand(out, groups, generator=g) + 0.1).to(DTYPES[seed % 3])
    zero = torch.randint(0, 16, (out, groups), generator=g, dtype=torch.uint8) if kind == "zero point" else None
    low = torch.randn(out, groups, generator=g) if kind == "minimum" else None
    values = torch.randint(0, 16, (out, inputs), generator=g, dtype=torch.uint8)
    bias = torch.randn(out, generator=g) if seed % 2 else None
    fields: dict[str, Any] = {"weight_zero_point": zero, "weight_min": low}
    return W4Canonical(pack_nibbles(values), scale, bias, inputs, group, **{**fields, **changes})


def same(a: W4Canonical, b: W4Canonical) -> None:
    for name in ("weight_packed", "weight_scale", "bias", "weight_zero_point", "weight_min"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name
    for name in ("in_features", "group_size", "input_mode", "activation"):
        assert getattr(a, name) == getattr(b, name), name


def expected(x: Tensor, c: W4Canonical) -> np.ndarray[Any, Any]:
    """The formula of kernels.h in NumPy, one float32 operation at a time; bias and nothing else behind it."""
    f32 = np.float32
    rows, values = x.float().numpy(), c.values().numpy().astype(np.int64)
    biggest = np.abs(rows).max(-1)
    row_scale = np.maximum(biggest * (f32(1) / f32(127)), f32(2.0**-100)).astype(f32)
    q = np.clip(np.rint(rows * (f32(1) / row_scale)[:, None]), -127, 127).astype(np.int64)
    scale = c.weight_scale.float().numpy()
    total, terms = np.zeros((len(rows), len(values)), f32), []
    for g in range(c.groups):
        part = slice(g * c.group_size, (g + 1) * c.group_size)
        exact, sums = q[:, part] @ values[:, part].T, q[:, part].sum(-1, keepdims=True)
        if c.weight_zero_point is not None:
            exact = exact - sums * c.weight_zero_point.numpy().astype(np.int64)[:, g]
        elif c.weight_min is None:
            exact = exact - 8 * sums
        terms.append(exact.astype(f32) * scale[:, g])
        if c.weight_min is not None:
            total = total + sums.astype(f32) * c.weight_min.numpy()[:, g]
    for term in terms:
        total = total + term
    total = total * row_scale[:, None]
    return total if c.bias is None else total + c.bias.numpy()


def run(x: Tensor, c: W4Canonical, **options: Any) -> Tensor:
    out: Tensor = torch.ops.fastcompress.linear_w4(x, pack(c), c.weight_shape[0], **options)
    return out


@pytest.mark.parametrize("inputs", [1, 7, 8, 9, 64, 100])
def test_nibbles_round_trip(inputs: int) -> None:
    values = torch.randint(0, 16, (5, inputs), generator=rng(inputs), dtype=torch.uint8)
    words = pack_nibbles(values)
    assert words.dtype == torch.int32
    assert list(words.shape) == [5, -(-inputs // 8)]
    assert torch.equal(unpack_nibbles(words, inputs), values)
    first = int(words[0, 0]) & 0xFFFFFFFF
    assert first & 15 == int(values[0, 0])  # lowest bits first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blobs_give_back_every_bit(shape: tuple[int, ...], kind: str) -> None:
    _, inputs, out, group = shape
    for seed in range(6):
        c = canonical(out, inputs, group, kind, seed, activation="silu" if seed == 5 else "none")
        for packed in (pack(c), reference_groups.encode(c)):
            check(packed)
            same(unpack(packed), c)
            header = info(packed)
            assert (header["family"], header["n"], header["k"]) == ("linear_w4", out, inputs)
            assert header["group_size"] == group


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_gives_the_formulas_bits(isa: str, shape: tuple[int, ...], kind: str) -> None:
    rows, inputs, out, group = shape
    for seed in range(6):
        c = canonical(out, inputs, group, kind, seed)
        x = torch.randn(rows, inputs, generator=rng(seed)).to(DTYPES[seed // 2])
        found = run(x, c, out_dtype=torch.float32)
        assert np.array_equal(found.numpy(), expected(x, c))


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_stay_exact(isa: str, kind: str) -> None:
    """The largest values and inputs, in one group of all inputs."""
    c = canonical(33, 4096, 4096, kind)
    c = replace(c, weight_packed=torch.full_like(c.weight_packed, -1))  # all 15
    for sign in (-1.0, 1.0):
        x = torch.full((3, 4096), sign)
        assert np.array_equal(run(x, c).numpy(), expected(x, c))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 6, 37])
def test_threads_do_not_matter(rows: int, threads: int) -> None:
    c, x = canonical(300, 512, 64, "eight", 1), torch.randn(rows, 512, generator=rng(5))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert np.array_equal(run(x, c).numpy(), expected(x, c))
    finally:
        torch.set_num_threads(before)


def test_operator_and_plain_torch_agree_on_every_option() -> None:
    x, residual = torch.randn(2, 5, 40, generator=rng(1)), torch.randn(2, 5, 20, generator=rng(2))
    bytes_out = {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}
    for kind in KINDS:
        for activation in ("none", "relu", "gelu", "silu"):
            c = canonical(20, 40, 16, kind, 1, activation=activation)
            for options in ({}, {"residual": residual}, {"out_dtype": torch.bfloat16}, bytes_out):
                plain = reference.linear_w4(x, reference_groups.encode(c), 20, **options)  # type: ignore[arg-type]
                assert torch.equal(run(x, c, **options), plain)


def test_a_row_that_is_not_finite_is_nan_alone() -> None:
    x = torch.randn(3, 40, generator=rng(1))
    x[1, 7] = float("nan")
    c = canonical(20, 40, 16, "eight")
    y = run(x, c)
    assert bool(y[1].isnan().all())
    assert torch.equal(y[[0, 2]], run(x[[0, 2]], c))


def test_strided_and_empty_inputs() -> None:
    c = canonical(20, 40, 16, "eight")
    x = torch.randn(40, 6, generator=rng(1)).t()
    assert torch.equal(run(x, c), run(x.contiguous(), c))
    assert list(run(torch.empty(2, 0, 40), c).shape) == [2, 0, 20]
    assert list(run(torch.randn(40), c).shape) == [20]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, 32, 1000])
def test_rounding_to_nearest(group: int, symmetric: bool) -> None:
    weight = torch.randn(24, 96, generator=rng(3))
    c = round_to_nearest(weight, group, symmetric=symmetric)
    assert c.weight_scale.dtype == torch.bfloat16
    assert c.group_size == min(group, 96)
    error = (c.dequantize() - weight).abs()
    scale = c.weight_scale.float().repeat_interleave(c.group_size, 1)[:, :96]
    # Half a step; the end of the range loses another half, and a rounded scale up to 2^-8 of the range.
    assert bool((error <= scale * (1.0 + 16 * 2.0**-8)).all())
    assert float((error <= 0.5 * scale * (1 + 1e-6)).float().mean()) > 0.8


def test_zeros_stay_zeros() -> None:
    c = round_to_nearest(torch.zeros(4, 16), 8)
    assert bool((c.dequantize() == 0).all())
    assert bool((run(torch.randn(2, 16), c) == 0).all())


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"weight_packed": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "int32"),
        ({"weight_packed": torch.zeros(4, 3, dtype=torch.int32)}, ValueError, r"ceil\(in / 8\)"),
        ({"in_features": 0}, ValueError, "ceil"),
        ({"group_size": 12}, ValueError, "multiple of 8"),
        ({"group_size": 0}, ValueError, "multiple of 8"),
        ({"group_size": 32}, ValueError, "multiple of 8"),
        ({"weight_scale": torch.ones(4, 3)}, ValueError, "one per group"),
        ({"weight_scale": torch.ones(4, 2, dtype=torch.float64)}, TypeError, "weight_scale"),
        ({"weight_scale": torch.full((4, 2), float("nan"))}, ValueError, "NaN"),
        ({"weight_zero_point": torch.full((4, 2), 16, dtype=torch.uint8)}, ValueError, "15"),
        ({"weight_zero_point": torch.zeros(4, 2)}, TypeError, "weight_zero_point"),
        ({"weight_min": torch.full((4, 2), float("inf"))}, ValueError, "NaN"),
        ({"weight_min": torch.zeros(4, 1)}, ValueError, "one per group"),
        (
            {"weight_min": torch.zeros(4, 2), "weight_zero_point": torch.zeros(4, 2, dtype=torch.uint8)},
            ValueError,
            "exclude",
        ),
        ({"input_mode": "static"}, ValueError, "input_mode"),
        ({"bias": torch.ones(3)}, ValueError, "bias"),
        ({"activation": "tanh"}, ValueError, "activation"),
    ],
)
def test_what_cannot_be_packed(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    good = canonical(4, 16, 8, "eight")
    with pytest.raises(error, match=says):
        pack(replace(good, **changes))


def test_what_the_operator_refuses() -> None:
    c = canonical(20, 40, 16, "eight")
    packed, op = pack(c), torch.ops.fastcompress.linear_w4
    x = torch.randn(2, 40)
    for call, says in (
        (lambda: op(torch.randn(2, 39), packed, 20), "40"),
        (lambda: op(x, packed, 21), "out_features"),
        (lambda: op(x.double(), packed, 20), "float64"),
        (lambda: op(torch.zeros(2, 40, dtype=torch.uint8), packed, 20), "uint8"),
        (lambda: op(x, packed, 20, out_dtype=torch.int32), "int32"),
        (lambda: op(x, packed[:-1], 20), "truncated"),
        (lambda: torch.ops.fastcompress.linear_w8a8(x, packed, 20), "linear_w4"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=says):
            call()


@pytest.mark.skipif(not native.available, reason="needs the native kernels")
def test_no_flipped_bit_of_the_header_runs() -> None:
    packed = pack(canonical(20, 40, 16, "zero point"))
    x = torch.randn(1, 40)
    for byte in range(256):
        damaged = packed.clone()
        damaged[byte] ^= 1 << (byte % 8)
        with pytest.raises(RuntimeError, match="packed weights"):
            torch.ops.fastcompress.linear_w4(x, damaged, 20)


@pytest.mark.skipif(not native.available, reason="needs the native kernels")
@pytest.mark.parametrize("value", [-1, 0, 7, 12, 41, 1 << 40])
def test_forged_group_sizes_are_refused(value: int) -> None:
    """A header whose checksum is right, too."""
    packed = pack(canonical(20, 40, 16, "eight"))
    head = bytearray(packed[:248].numpy().tobytes())
    assert struct.unpack_from("<q", head, GROUP_SIZE_AT) == (16,)
    struct.pack_into("<q", head, GROUP_SIZE_AT, value)
    packed[:248] = torch.frombuffer(head, dtype=torch.uint8)
    packed[248:256] = torch.frombuffer(bytearray(struct.pack("<Q", blob_checksum(bytes(head)))), dtype=torch.uint8)
    with pytest.raises(PackedBlobError, match="inconsistent"):
        check(packed)
