"""Weights in groups with float activations (W4A16, W8A16): round trips, the operators against float64, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.errors import PackedBlobError
from fastcompress.ops import W4Canonical, W8Canonical, check, info, native, pack, reference, reference_groups, unpack
from tests import tolerances
from tests.guard import GuardedBuffers
from tests.ops.cases import rng
from tests.ops.test_linear_w4 import DTYPES, KINDS, SHAPES
from tests.ops.test_linear_w4 import canonical as four_bit

Layer = W4Canonical | W8Canonical
#: Four-bit layers of three kinds, eight-bit layers of one.
FORMS = (*KINDS, "eight bits")


def layer(out: int, inputs: int, group: int, form: str, seed: int = 0, **changes: Any) -> Layer:
    if form != "eight bits":
        return four_bit(out, inputs, group, form, seed, **{"input_mode": "float", **changes})
    g = rng(seed)
    scale = (torch.rand(out, -(-inputs // group), generator=g) + 0.1).to(DTYPES[seed % 3])
    weight = torch.randint(-128, 128, (out, inputs), generator=g, dtype=torch.int8)
    return W8Canonical(weight, scale, torch.randn(out, generator=g) if seed % 2 else None, group, **changes)


def same(a: Layer, b: Layer) -> None:
    assert type(a) is type(b)
    for name, x in vars(a).items():
        y = getattr(b, name)
        if isinstance(x, Tensor):
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name
        else:
            assert x == y, name


def run(x: Tensor, c: Layer, packed: Tensor | None = None, **options: Any) -> Tensor:
    op = getattr(torch.ops.fastcompress, c.family)
    out: Tensor = op(x, pack(c) if packed is None else packed, c.weight_shape[0], **options)
    return out


def sums(x: Tensor, c: Layer) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Float64 sums from the integers, without the package's dequantization, and the largest error of the kernels'."""
    a = x.double().numpy()
    total, size = np.zeros((len(a), c.weight_shape[0])), np.zeros((len(a), c.weight_shape[0]))
    codes = c.values() if isinstance(c, W4Canonical) else c.weight
    q, scale = codes.double().numpy(), c.weight_scale.double().numpy()
    zero = np.full(scale.shape, 8.0) if isinstance(c, W4Canonical) else np.zeros(scale.shape)
    low, centre = np.zeros(scale.shape), zero.flat[0]
    if isinstance(c, W4Canonical) and c.weight_zero_point is not None:
        zero = c.weight_zero_point.double().numpy()
    if isinstance(c, W4Canonical) and c.weight_min is not None:
        zero, centre, low = np.zeros(scale.shape), 0.0, c.weight_min.double().numpy()
    for g in range(c.groups):
        part = slice(g * c.group_size, (g + 1) * c.group_size)
        of_group = a[:, part].sum(-1, keepdims=True)
        total += (a[:, part] @ q[:, part].T - of_group * zero[:, g]) * scale[:, g] + of_group * low[:, g]
        centred = np.abs(a[:, part]) @ np.abs(q[:, part] - centre).T
        moved = np.abs(a[:, part]).sum(-1, keepdims=True) * np.abs(zero[:, g] - centre)
        size += (centred + moved) * scale[:, g] + np.abs(a[:, part]).sum(-1, keepdims=True) * np.abs(low[:, g])
    return total, tolerances.group_bound(min(c.group_size, c.in_features), c.groups, size)


def assert_close(y: Tensor, x: Tensor, c: Layer) -> None:
    want, error = sums(x, c)
    if c.bias is not None:
        want = want + c.bias.double().numpy()
        error = tolerances.added_bound(error, want)
    assert np.abs(y.double().numpy() - want).max(initial=0.0) <= error.max(initial=0.0)
    assert (np.abs(y.double().numpy() - want) <= error).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blobs_give_back_every_bit(shape: tuple[int, ...], form: str) -> None:
    _, inputs, out, group = shape
    for seed in range(6):
        c = layer(out, inputs, group, form, seed, activation="silu" if seed == 5 else "none")
        for packed in (pack(c), reference_groups.encode(c)):
            check(packed)
            same(unpack(packed), c)
            header = info(packed)
            assert (header["family"], header["n"], header["k"]) == (c.family, out, inputs)
            assert header["group_size"] == group


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_is_near_float64(isa: str, shape: tuple[int, ...], form: str) -> None:
    rows, inputs, out, group = shape
    for seed in range(6):
        c = layer(out, inputs, group, form, seed)
        x = torch.randn(rows, inputs, generator=rng(seed)).to(DTYPES[seed // 2])
        assert_close(run(x, c, out_dtype=torch.float32), x, c)


@pytest.mark.parametrize("form", FORMS)
def test_integers_come_out_exact(isa: str, form: str) -> None:
    """Inputs, scales, zero points and minima that are small integers: no sum is rounded."""
    c = layer(70, 200, 40, form, 3)
    whole = torch.randint(1, 4, c.weight_scale.shape, generator=rng(8)).to(c.weight_scale.dtype)
    c = replace(c, weight_scale=whole, bias=None)
    if isinstance(c, W4Canonical) and c.weight_min is not None:
        c = replace(c, weight_min=c.weight_min.round())
    x = torch.randint(-9, 10, (7, 200), generator=rng(9)).float()
    want, _ = sums(x, c)
    assert np.array_equal(run(x, c).numpy(), want)


@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_depend_on_their_company(isa: str, form: str) -> None:
    c = layer(150, 264, 24, form, 1)
    packed, x = pack(c), torch.randn(29, 264, generator=rng(2))
    whole = run(x, c, packed)
    for begin, end in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 15), (15, 21), (21, 28), (28, 29)):
        assert torch.equal(run(x[begin:end], c, packed), whole[begin:end])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 6, 37])
def test_threads_do_not_matter(rows: int, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        for form in ("minimum", "eight bits"):
            c, x = layer(300, 512, 64, form, 1), torch.randn(rows, 512, generator=rng(5))
            torch.set_num_threads(1)
            alone = run(x, c)
            torch.set_num_threads(threads)
            assert torch.equal(run(x, c), alone)
    finally:
        torch.set_num_threads(before)


def test_operator_and_plain_torch_agree_on_every_option() -> None:
    """On integers, which neither rounds: every step behind the sums is prescribed."""
    x = torch.randint(-5, 6, (2, 5, 40), generator=rng(1)).float()
    residual = torch.randn(2, 5, 20, generator=rng(2))
    bytes_out = {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}
    options: list[dict[str, Any]] = [{}, {"residual": residual}, {"out_dtype": torch.bfloat16}, bytes_out]
    for form in ("eight", "zero point", "eight bits"):
        for activation in ("none", "relu", "gelu", "silu"):
            c = layer(20, 40, 16, form, 1, activation=activation)
            c = replace(c, weight_scale=torch.full_like(c.weight_scale, 0.25))
            for option in options:
                plain = getattr(reference, c.family)(x, reference_groups.encode(c), 20, **option)
                assert torch.equal(run(x, c, **option), plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(isa: str, form: str, value: float) -> None:
    x = torch.randn(8, 40, generator=rng(1))
    clean = run(x, layer(20, 40, 16, form))
    x[3, 7] = value
    y = run(x, layer(20, 40, 16, form))
    others = [0, 1, 2, 4, 5, 6, 7]
    assert not bool(y[3].isfinite().any())
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("form", ["eight", "eight bits"])
def test_strided_and_empty_inputs(form: str) -> None:
    c = layer(20, 40, 16, form)
    x = torch.randn(40, 6, generator=rng(1)).t()
    assert torch.equal(run(x, c), run(x.contiguous(), c))
    assert list(run(torch.empty(2, 0, 40), c).shape) == [2, 0, 20]
    assert list(run(torch.randn(40), c).shape) == [20]


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_weight(form: str) -> None:
    c = layer(20, 40, 16, form, 1, activation="relu")
    x = torch.randn(6, 40, generator=rng(1), requires_grad=True)
    residual = torch.randn(6, 20, generator=rng(2), requires_grad=True)
    grad = torch.randn(6, 20, generator=rng(3))
    y = run(x, c, residual=residual)
    y.backward(grad)
    passed = torch.where(y > 0, grad, 0.0)
    assert residual.grad is not None
    assert torch.equal(residual.grad, passed)
    assert x.grad is not None
    weight = c.dequantize().double().numpy()
    want = passed.double().numpy() @ weight
    bound = tolerances.dot_bound(passed.abs().double().numpy(), np.abs(weight).T, want)
    assert (np.abs(x.grad.double().numpy() - want) <= bound).all()


@pytest.mark.skipif(not native.available, reason="needs the native kernels")
@pytest.mark.parametrize("side", ["start", "end"])
def test_kernels_stay_inside_their_buffers(isa: str, side: Any) -> None:
    """Blob, input and output next to pages without any access rights: a stray read ends the test run."""
    for form in FORMS:
        for rows, inputs, out, group in ((1, 72, 130, 24), (1, 31, 17, 31), (7, 100, 70, 32), (4, 8, 1, 8)):
            c = layer(out, inputs, group, form, 1)
            buffers = GuardedBuffers(side)
            packed = torch.from_numpy(buffers.place(pack(c).numpy(), read_only=True, alignment=64))
            for dtype in (torch.float32, torch.float16):
                x = torch.randn(rows, inputs, generator=rng(4)).to(dtype)
                placed = torch.from_numpy(buffers.place(x.numpy(), read_only=True))
                assert torch.equal(run(placed, c, packed), run(x, c))
                where = buffers.place(np.array([out - 1, 0], np.int64), read_only=True)
                torch.ops.fastcompress.embedding_packed(torch.from_numpy(where), packed, out, inputs, dtype)
            buffers.release()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"weight": torch.zeros(4, 16)}, TypeError, "int8"),
        ({"weight": torch.zeros(4, 16, 1, dtype=torch.int8)}, ValueError, r"\[out, in\]"),
        ({"weight": torch.zeros(0, 16, dtype=torch.int8)}, ValueError, "empty"),
        ({"group_size": 12}, ValueError, "multiple of 8"),
        ({"group_size": 0}, ValueError, "multiple of 8"),
        ({"weight_scale": torch.ones(4, 3)}, ValueError, "one per group"),
        ({"weight_scale": torch.ones(4, 2, dtype=torch.float64)}, TypeError, "weight_scale"),
        ({"weight_scale": torch.full((4, 2), float("nan"))}, ValueError, "NaN"),
        ({"input_mode": "dynamic_symmetric"}, ValueError, "float"),
        ({"bias": torch.ones(3)}, ValueError, "bias"),
        ({"activation": "tanh"}, ValueError, "activation"),
    ],
)
def test_what_cannot_be_packed(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    good = layer(4, 16, 8, "eight bits")
    with pytest.raises(error, match=says):
        pack(replace(good, **changes))


def test_what_the_operators_refuse() -> None:
    four, eight = pack(layer(20, 40, 16, "eight")), pack(layer(20, 40, 16, "eight bits"))
    ops, x = torch.ops.fastcompress, torch.randn(2, 40)
    for call, says in (
        (lambda: ops.linear_w8(torch.randn(2, 39), eight, 20), "40"),
        (lambda: ops.linear_w8(x, eight, 21), "out_features"),
        (lambda: ops.linear_w8(x.double(), eight, 20), "float64"),
        (lambda: ops.linear_w8(x, eight, 20, out_dtype=torch.int32), "int32"),
        (lambda: ops.linear_w8(x, eight[:-1], 20), "truncated"),
        (lambda: ops.linear_w8(x, four, 20), "linear_w4"),
        (lambda: ops.linear_w4(x, eight, 20), "linear_w8"),
        (lambda: ops.linear_w8a8(x, eight, 20), "linear_w8"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=says):
            call()


@pytest.mark.skipif(not native.available, reason="needs the native kernels")
@pytest.mark.parametrize("form", ["minimum", "eight bits"])
def test_no_flipped_bit_of_the_header_runs(form: str) -> None:
    c = layer(20, 40, 16, form)
    packed, x = pack(c), torch.randn(1, 40)
    for byte in range(256):
        damaged = packed.clone()
        damaged[byte] ^= 1 << (byte % 8)
        with pytest.raises(RuntimeError, match="packed weights"):
            run(x, c, damaged)
    damaged = packed.clone()
    damaged[300] ^= 4
    with pytest.raises(PackedBlobError, match="corrupt"):
        check(damaged)
