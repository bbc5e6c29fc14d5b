"""Weights in groups with 16-bit activations (W4A16, W8A16): round trips, the operators against NumPy, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.errors import PackedBlobError
from fastcompress.ops import (
    MAX_K,
    W4Canonical,
    W8Canonical,
    check,
    info,
    native,
    pack,
    reference,
    reference_groups,
    unpack,
)
from fastcompress.ops.arithmetic_groups import linear_sums
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
        return four_bit(out, inputs, group, form, seed, **{"input_mode": "dynamic_16bit", **changes})
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


def oracle(x: Tensor, c: Layer) -> np.ndarray[Any, Any]:
    """The formula of docs/architecture.md in NumPy, one float32 operation at a time."""
    f = np.float32
    a = x.float().numpy()
    codes = (c.values() if isinstance(c, W4Canonical) else c.weight).long().numpy()
    scale, low, zero = c.weight_scale.float().numpy(), None, np.zeros(c.weight_scale.shape, np.int64)
    if isinstance(c, W4Canonical):
        low = None if c.weight_min is None else c.weight_min.numpy()
        zero += 0 if low is not None else 8
        zero = zero if c.weight_zero_point is None else c.weight_zero_point.long().numpy()
    total, terms = np.zeros((len(a), c.weight_shape[0]), f), []
    for g in range(c.groups):
        part = a[:, g * c.group_size : (g + 1) * c.group_size]
        step = np.maximum(np.abs(part).max(1, keepdims=True) * (f(1) / f(32639)), f(2.0**-100))
        q = np.rint(part * (f(1) / step)).astype(np.int64)
        high = (q + 128) // 256
        rest = q - 256 * high
        assert max(np.abs(high).max(), np.abs(rest).max()) <= 128
        w = codes[:, g * c.group_size : (g + 1) * c.group_size] - zero[:, g : g + 1]
        both = [(s @ w.T).astype(f) for s in (high, rest)]
        terms.append(((both[0] * f(256) + both[1]) * scale[:, g]) * step)
        if low is not None:
            inputs = [s.sum(1, keepdims=True).astype(f) for s in (high, rest)]
            total = total + ((inputs[0] * f(256) + inputs[1]) * step) * low[:, g]
    for term in terms:
        total = total + term
    return total if c.bias is None else total + c.bias.numpy()


def exact_and_bound(x: Tensor, c: Layer) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What float64 gives for the same weights, and how far 16-bit activations and float32 sums may be from it."""
    a, w = x.double().numpy(), c.dequantize(torch.float64).numpy()
    off, size = np.zeros((len(a), len(w))), np.zeros((len(a), len(w)))
    for g in range(c.groups):
        part = slice(g * c.group_size, (g + 1) * c.group_size)
        largest = np.abs(a[:, part]).max(1, keepdims=True)
        magnitude = np.abs(w[:, part]).sum(1)
        if isinstance(c, W4Canonical) and c.weight_min is not None:
            scaled = c.values()[:, part].double().sum(1).numpy() * c.weight_scale[:, g].double().numpy()
            magnitude = scaled + np.abs(c.weight_min[:, g].double().numpy()) * w[:, part].shape[1]
        off += largest * magnitude * tolerances.SIXTEEN_BITS
        size += largest * magnitude
    exact = a @ w.T + (0.0 if c.bias is None else c.bias.double().numpy())
    return exact, tolerances.added_bound(off + tolerances.group_bound(c.groups, size), exact)


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
def test_every_isa_is_the_formula(isa: str, shape: tuple[int, ...], form: str) -> None:
    rows, inputs, out, group = shape
    for seed in range(6):
        c = layer(out, inputs, group, form, seed)
        x = torch.randn(rows, inputs, generator=rng(seed)).to(DTYPES[seed // 2])
        y = run(x, c, out_dtype=torch.float32).numpy()
        assert np.array_equal(y, oracle(x, c))
        exact, bound = exact_and_bound(x, c)
        assert (np.abs(y - exact) <= bound).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [9, 13, 30, 61, 100])
def test_many_rows_are_the_formula(isa: str, rows: int, form: str) -> None:
    for inputs, out, group in ((200, 70, 40), (600, 33, 600), (136, 150, 24)):
        c = layer(out, inputs, group, form, 2)
        x = torch.randn(rows, inputs, generator=rng(rows)) * 10.0 ** torch.randn(rows, inputs, generator=rng(3))
        assert np.array_equal(run(x, c).numpy(), oracle(x, c))


@pytest.mark.parametrize("form", FORMS)
def test_largest_sums_are_exact(isa: str, form: str) -> None:
    """The longest reduction there is, every product as large as it gets, all of one sign."""
    c = layer(17, MAX_K, MAX_K, form, 2)
    if isinstance(c, W4Canonical):
        zero = None if c.weight_zero_point is None else torch.zeros_like(c.weight_zero_point)
        c = replace(c, weight_packed=torch.full_like(c.weight_packed, -1), weight_zero_point=zero)
        c = replace(c, weight_packed=torch.zeros_like(c.weight_packed)) if form == "eight" else c
    else:
        c = replace(c, weight=torch.full_like(c.weight, -128))
    for sign in (1.0, -1.0):
        x = torch.full((2, MAX_K), sign)
        assert np.array_equal(run(x, c).numpy(), oracle(x, c))


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
    x = torch.randn(2, 5, 40, generator=rng(1))
    residual = torch.randn(2, 5, 20, generator=rng(2))
    bytes_out = {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}
    options: list[dict[str, Any]] = [{}, {"residual": residual}, {"out_dtype": torch.bfloat16}, bytes_out]
    for form in FORMS:
        for activation in ("none", "relu", "gelu", "silu"):
            c = layer(20, 40, 16, form, 1, activation=activation)
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
        ({"input_mode": "dynamic_symmetric"}, ValueError, "dynamic_16bit"),
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
def test_the_raw_module_refuses_blobs_of_other_families() -> None:
    module = native.require("this test")
    four, eight = pack(layer(20, 40, 16, "eight")).numpy(), pack(layer(20, 40, 16, "eight bits")).numpy()
    for unpacker, blob in (
        (module.unpack_w8a8, four),
        (module.unpack_w8a8, eight),
        (module.unpack_bsr, four),
        (module.unpack_w4, eight),
        (module.unpack_w8, four),
    ):
        with pytest.raises(ValueError, match=r"packed weights are"):
            unpacker(blob)


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


@pytest.mark.parametrize("form", FORMS)
def test_the_default_dtype_changes_no_bit(form: str) -> None:
    c = layer(9, 40, 16, form)
    x = torch.randn(3, 40, generator=rng(5))
    expected = linear_sums(x, c)
    torch.set_default_dtype(torch.float64)
    try:
        found = linear_sums(x, c)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
