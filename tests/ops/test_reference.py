"""The reference functions, and the registered operators, against the oracle: bit for bit wherever that is defined."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.ops import ACTIVATIONS, W8A8Canonical
from tests import oracles, tolerances
from tests.ops.cases import (
    DTYPE_NAMES,
    IMPLEMENTATIONS,
    Implementation,
    as_numpy,
    canonical_conv2d,
    canonical_linear,
    rng,
)

FLOATS = tuple(DTYPE_NAMES)
HOSTILE = [0.0, -0.0, 1e-38, -1e-45, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"), 0.5, 1.5, 2.5, -0.5]

each_implementation = pytest.mark.parametrize("run", IMPLEMENTATIONS, ids=lambda run: run.name)


@each_implementation
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("scale", "zero_point", "out"), [(0.02, 128, torch.uint8), (1.0, 0, torch.int8), (3e-5, -7, torch.int8)]
)
def test_quantize_per_tensor(
    run: Implementation, dtype: torch.dtype, scale: float, zero_point: int, out: torch.dtype
) -> None:
    x = torch.cat([torch.tensor(HOSTILE), torch.randn(1000, generator=rng(1)) * 5]).to(dtype)
    expected = oracles.quantize_per_tensor(as_numpy(x), scale, zero_point, out == torch.int8)
    got = run.ops.quantize_per_tensor(x, scale, zero_point, out)
    assert got.dtype == out
    np.testing.assert_array_equal(got.numpy(), expected)


@each_implementation
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_quantize_per_token(run: Implementation, dtype: torch.dtype, symmetric: bool) -> None:
    x = torch.randn(16, 33, generator=rng(2)) * torch.logspace(-30, 30, 16).unsqueeze(1)
    x[1], x[2], x[3] = 0.0, 5.0, -5.0
    x[4, 7], x[5, 0], x[6, 32] = float("nan"), float("inf"), float("-inf")
    x[7] = x[7].abs()
    x = x.to(dtype)
    expected = oracles.quantize_per_token(as_numpy(x), symmetric)
    got = run.ops.quantize_per_token(x, symmetric)
    for actual, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(actual.numpy(), wanted)


def test_row_with_nan_leaves_the_others_alone() -> None:
    x = torch.randn(3, 8, generator=rng(3))
    clean = torch.ops.fastcompress.quantize_per_token(x)
    x[1, 4] = float("nan")
    q, scale, zero = torch.ops.fastcompress.quantize_per_token(x)
    assert torch.isnan(scale).tolist() == [False, True, False]
    assert q[1].eq(0).all()
    assert zero[1] == 0
    for row in (0, 2):
        assert torch.equal(q[row], clean[0][row])
        assert scale[row] == clean[1][row]


def _expect(
    acc: Any, x_scale: Any, c: W8A8Canonical, residual: Tensor | None, out: torch.dtype, parameters: dict[str, Any]
) -> Any:
    """(value, bound): bound 0 where the contract is exact."""
    if out == torch.int32:
        return acc, 0
    epilogue = oracles.Epilogue(
        c.weight_scale.numpy(),
        None if c.bias is None else c.bias.numpy(),
        None if residual is None else as_numpy(residual).reshape(acc.shape),
    )
    v = oracles.pre_activation(acc, x_scale, epilogue)
    exact = c.activation in oracles.EXACT_ACTIVATIONS
    y = oracles.activate64(v, c.activation)
    if out in (torch.uint8, torch.int8):
        value = oracles.requantize(
            y.astype(np.float32), parameters["out_scale"], parameters["out_zero_point"], out == torch.int8
        )
        return value.astype(np.int64), 0 if exact else tolerances.INT_STEPS_AFTER_ACTIVATION
    if exact:
        return torch.from_numpy(oracles.activate32(v, c.activation)).to(out).double().numpy(), 0
    return y, tolerances.output_bound(c.activation, DTYPE_NAMES[out], v, y)


def _assert_close(got: Tensor, value: Any, bound: Any) -> None:
    actual = got.double().numpy().reshape(value.shape)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(value.astype(np.float64)))
    difference = np.abs(np.nan_to_num(actual) - np.nan_to_num(value.astype(np.float64)))
    assert (difference <= np.nan_to_num(bound)).all(), f"largest difference {difference.max()}"


_OUT = {
    torch.uint8: {"out_scale": 0.05, "out_zero_point": 100},
    torch.int8: {"out_scale": 0.05, "out_zero_point": -3},
}
LINEAR = [
    (dtype, mode, activation, out)
    for (dtype, mode), (activation, out) in zip(
        itertools.cycle(itertools.product((*FLOATS, torch.uint8), ("static", "dynamic", "dynamic_symmetric"))),
        itertools.product(
            ACTIVATIONS, (None, torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int32, torch.float16)
        ),
        strict=False,
    )
]


@each_implementation
@pytest.mark.parametrize(("dtype", "mode", "activation", "out"), LINEAR)
def test_linear(run: Implementation, dtype: torch.dtype, mode: str, activation: str, out: torch.dtype | None) -> None:
    c = canonical_linear(
        19,
        37,
        input_mode=mode,
        activation=activation,
        bias=None if activation == "silu" else torch.randn(19, generator=rng(6)),
    )
    x = torch.randn(9, 37, generator=rng(4)) * 2
    extra: dict[str, Any] = {}
    if dtype == torch.uint8:
        x = torch.randint(0, 256, (9, 37), generator=rng(4), dtype=torch.uint8)
        q, x_scale, zero = x.numpy(), np.full(9, c.input_scale), np.full(9, c.input_zero_point)
        if mode != "static":
            scales, zeros = (
                torch.rand(9, generator=rng(5)) * 0.1 + 1e-3,
                torch.randint(0, 256, (9,), generator=rng(5), dtype=torch.int32),
            )
            extra.update(input_scale=scales, input_zero_point=zeros)
            x_scale, zero = scales.numpy(), zeros.numpy()
    else:
        x = x.to(dtype)
        x[3, 5] = float("nan")
        if mode == "static":
            q = oracles.quantize_per_tensor(as_numpy(x), c.input_scale, c.input_zero_point)
            x_scale, zero = np.full(9, c.input_scale), np.full(9, c.input_zero_point)
        else:
            q, x_scale, zero = oracles.quantize_per_token(as_numpy(x), mode == "dynamic_symmetric")
    target = out or (torch.float32 if dtype == torch.uint8 else dtype)
    residual = None if target == torch.int32 else torch.randn(9, 19, generator=rng(7)).to(FLOATS[len(activation) % 3])
    acc = oracles.linear_acc(q, zero, c.weight.numpy())
    value, bound = _expect(acc, x_scale, c, residual, target, _OUT.get(target, {}))
    got = run.ops.linear_w8a8(x, run.pack(c), 19, residual, out, **_OUT.get(target, {}), **extra)
    assert got.dtype == target
    assert got.shape == (9, 19)
    _assert_close(got, value, bound)


CONV = [
    # out, per group, groups, kernel, stride, padding, dilation
    (8, 5, 1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    (6, 3, 2, (3, 3), (2, 1), (0, 1, 1, 2), (1, 1)),
    (16, 1, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (10, 1, 5, (5, 3), (2, 2), (3, 2, 1, 0), (1, 2)),
    (7, 3, 1, (2, 4), (3, 2), (0, 0, 5, 5), (2, 1)),
]


@each_implementation
@pytest.mark.parametrize("geometry", CONV, ids=str)
@pytest.mark.parametrize(
    ("dtype", "activation", "out"),
    [
        (torch.float32, "relu6", None),
        (torch.bfloat16, "none", None),
        (torch.float16, "hardswish", torch.uint8),
        (torch.uint8, "relu", None),
        (torch.uint8, "none", torch.int32),
        (torch.float32, "gelu", torch.int8),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conv2d(
    run: Implementation,
    geometry: Any,
    dtype: torch.dtype,
    activation: str,
    out: torch.dtype | None,
    layout: torch.memory_format,
) -> None:
    channels, per_group, groups, kernel, stride, padding, dilation = geometry
    c = canonical_conv2d(channels, per_group, kernel, groups=groups, activation=activation)
    x = torch.randn(2, per_group * groups, 9, 11, generator=rng(8)).to(dtype)
    if dtype == torch.uint8:
        x = torch.randint(0, 256, x.shape, generator=rng(8), dtype=torch.uint8)
        q = x.numpy()
    else:
        x[0, 0, 0, 0], x[1, 0, 3, 3] = float("nan"), float("inf")
        q = oracles.quantize_per_tensor(as_numpy(x), c.input_scale, c.input_zero_point)
    x = x.to(memory_format=layout)
    acc = oracles.conv2d_acc(
        q.transpose(0, 2, 3, 1), c.input_zero_point, c.weight.numpy(), stride, padding, dilation, groups
    )
    shape = acc.shape
    target = out or (torch.float32 if dtype == torch.uint8 else dtype)
    residual = None
    if target != torch.int32:
        residual = torch.randn(shape, generator=rng(9)).permute(0, 3, 1, 2)
    flat = None if residual is None else residual.permute(0, 2, 3, 1)
    acc = acc.reshape(-1, channels)
    value, bound = _expect(acc, np.full(len(acc), c.input_scale), c, flat, target, _OUT.get(target, {}))
    got = run.ops.conv2d_w8a8(
        x, run.pack(c), channels, kernel, stride, padding, dilation, residual, out, **_OUT.get(target, {})
    )
    assert got.dtype == target
    assert tuple(got.shape) == (shape[0], channels, *shape[1:3])
    if x.is_contiguous() != x.is_contiguous(memory_format=torch.channels_last):
        assert got.is_contiguous(memory_format=layout)
    _assert_close(got.permute(0, 2, 3, 1).reshape(-1, channels), value, bound)


@each_implementation
def test_unbatched_convolution_equals_the_batched_one(run: Implementation) -> None:
    packed = run.pack(canonical_conv2d())
    x = torch.randn(2, 6, 7, generator=rng(10))
    geometry = (6, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
    assert torch.equal(run.ops.conv2d_w8a8(x, packed, *geometry), run.ops.conv2d_w8a8(x[None], packed, *geometry)[0])


@each_implementation
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_strided_and_overlapping_inputs_give_the_contiguous_result(run: Implementation, mode: str) -> None:
    packed = run.pack(canonical_linear(input_mode=mode))
    base = torch.randn(64, generator=rng(11))
    for view in (
        base.as_strided((6, 7), (2, 3)),
        base[:49].view(7, 7).t(),
        base[:1].expand(4, 7),
        base[1::3][:14].view(2, 7),
    ):
        assert torch.equal(
            run.ops.linear_w8a8(view, packed, 5), run.ops.linear_w8a8(view.clone().contiguous(), packed, 5)
        )
    packed = run.pack(canonical_conv2d())
    image = torch.randn(2, 9, 4, 11, generator=rng(12)).transpose(1, 2)[:, ::2, 1:, ::2]
    geometry = (6, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
    assert torch.equal(
        run.ops.conv2d_w8a8(image, packed, *geometry), run.ops.conv2d_w8a8(image.contiguous(), packed, *geometry)
    )


@each_implementation
@pytest.mark.parametrize("shape", [(0, 7), (2, 0, 7), (7,), (2, 3, 7)])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_leading_dimensions_and_empty_batches(run: Implementation, shape: tuple[int, ...], mode: str) -> None:
    x = torch.randn(shape, generator=rng(13))
    packed = run.pack(canonical_linear(input_mode=mode))
    y = run.ops.linear_w8a8(x, packed, 5)
    assert tuple(y.shape) == (*shape[:-1], 5)
    assert torch.equal(y.reshape(-1, 5), run.ops.linear_w8a8(x.reshape(-1, 7), packed, 5))
    q, scale, zero = run.ops.quantize_per_token(x)
    assert (q.shape, scale.shape, zero.shape) == (x.shape, x.shape[:-1], x.shape[:-1])


@each_implementation
def test_rows_without_elements(run: Implementation) -> None:
    q, scale, zero = run.ops.quantize_per_token(torch.empty(2, 0))
    assert tuple(q.shape) == (2, 0)
    assert scale.tolist() == [2.0**-100] * 2
    assert zero.tolist() == [0, 0]


@each_implementation
def test_empty_batch_of_images(run: Implementation) -> None:
    y = run.ops.conv2d_w8a8(torch.empty(0, 2, 5, 5), run.pack(canonical_conv2d()), 6, [3, 3], [1, 1], [0] * 4, [1, 1])
    assert tuple(y.shape) == (0, 6, 3, 3)


@each_implementation
def test_extreme_values_do_not_saturate_or_overflow(run: Implementation) -> None:
    """255 × -128 over the longest K: the int32 sum is one step from overflow, and AVX2's maddubs would saturate."""
    k = 65_793
    c = canonical_linear(
        1, k, weight=torch.full((1, k), -128, dtype=torch.int8), input_scale=1.0, input_zero_point=0, bias=None
    )
    acc = run.ops.linear_w8a8(torch.full((1, k), 255, dtype=torch.uint8), run.pack(c), 1, out_dtype=torch.int32)
    assert acc.item() == -255 * 128 * k


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_operator_equals_reference_to_the_last_bit(activation: str) -> None:
    """Also behind transcendental activations: both sides use exactly rounded operations in the same order."""
    c = canonical_linear(48, 32, input_mode="dynamic", activation=activation)
    x = torch.cat([torch.randn(200, 32, generator=rng(14)), torch.randn(60, 32, generator=rng(15)) * 40])
    results = [run.ops.linear_w8a8(x, run.pack(c), 48) for run in IMPLEMENTATIONS]
    assert torch.equal(*results)
