"""The oracle is judged first: against plain Python loops, `struct`, and torch in float64."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch

from tests import oracles


def _f32(value: float) -> float:
    """Round a Python float to float32 through its bytes."""
    return struct.unpack("<f", struct.pack("<f", value))[0]  # type: ignore[no-any-return]


def test_static_quantization_rounds_half_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, np.nan, np.inf, -np.inf], dtype=np.float32)
    assert oracles.quantize_per_tensor(x, 1.0, 10).tolist() == [10, 12, 12, 10, 8, 255, 0, 10, 255, 0]
    signed = oracles.quantize_per_tensor(x, 1.0, 10, signed=True)
    assert signed.tolist() == [10, 12, 12, 10, 8, 127, -128, 10, 127, -128]


def test_static_quantization_agrees_with_python_loops() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(500) * 5).astype(np.float32)
    scale, zero_point = _f32(0.037), 77
    inverse = _f32(1.0 / scale)
    want = [min(255, max(0, round(_f32(float(v) * inverse)) + zero_point)) for v in x]
    assert oracles.quantize_per_tensor(x, scale, zero_point).tolist() == want


@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_quantization_agrees_with_python_loops(symmetric: bool) -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((40, 13)) * 3).astype(np.float32)
    x[3] = 0
    x[4] = np.abs(x[4])
    x[5] = -np.abs(x[5])
    q, scale, zero_point = oracles.quantize_per_token(x, symmetric)
    for row, values in enumerate(x.tolist()):
        if symmetric:
            s = max(_f32(max(abs(v) for v in values) * _f32(1 / 127)), 2.0**-100)
            inverse, z, low = _f32(1 / s), 128, 1
        else:
            lo, hi, step = min(0.0, *values), max(0.0, *values), _f32(1 / 255)
            s = max(_f32(_f32(hi * step) - _f32(lo * step)), 2.0**-100)
            inverse = _f32(1 / s)
            z, low = min(255, max(0, round(_f32(-lo * inverse)))), 0
        assert (float(scale[row]), int(zero_point[row])) == (s, z)
        assert q[row].tolist() == [min(255, max(low, round(_f32(v * inverse)) + z)) for v in values]


def test_row_with_nan_or_infinity_is_marked_and_others_stay() -> None:
    x = np.ones((4, 5), dtype=np.float32)
    x[1, 2], x[2, 0] = np.nan, -np.inf
    q, scale, zero_point = oracles.quantize_per_token(x)
    assert np.isnan(scale).tolist() == [False, True, True, False]
    assert q[1:3].any() == np.bool_(False)
    assert zero_point[1:3].tolist() == [0, 0]
    assert q[0].tolist() == q[3].tolist() == [255] * 5


def test_linear_sum_agrees_with_torch_int64() -> None:
    rng = np.random.default_rng(3)
    q, w = rng.integers(0, 256, (7, 50), dtype=np.uint8), rng.integers(-128, 128, (9, 50), dtype=np.int8)
    zero_point = rng.integers(0, 256, 7, dtype=np.int32)
    shifted = torch.from_numpy(q).long() - torch.from_numpy(zero_point).long()[:, None]
    want = (shifted[:, None, :] * torch.from_numpy(w).long()[None]).sum(-1)
    assert np.array_equal(oracles.linear_acc(q, zero_point, w), want.numpy())


@pytest.mark.parametrize(
    ("groups", "kernel", "stride", "padding", "dilation"),
    [
        (1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        (1, (3, 2), (2, 1), (0, 1, 2, 3), (1, 1)),
        (2, (3, 3), (1, 2), (1, 1, 1, 1), (2, 1)),
        (6, (5, 3), (1, 1), (2, 2, 1, 0), (1, 2)),
    ],
)
def test_convolution_sum_agrees_with_torch(
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> None:
    rng = np.random.default_rng(4)
    q = rng.integers(0, 256, (2, 9, 8, 6), dtype=np.uint8)
    w = rng.integers(-128, 128, (12, 6 // groups, *kernel), dtype=np.int8)
    top, bottom, left, right = padding
    x = torch.nn.functional.pad(torch.from_numpy(q).permute(0, 3, 1, 2).double() - 31, (left, right, top, bottom))
    want = torch.nn.functional.conv2d(x, torch.from_numpy(w).double(), None, stride, 0, dilation, groups)
    got = oracles.conv2d_acc(q, 31, w, stride, padding, dilation, groups)
    assert np.array_equal(got, want.permute(0, 2, 3, 1).numpy().astype(np.int64))


def test_bf16_rounding_agrees_with_torch() -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    bits[:4] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001]  # two ties, overflow, the smallest subnormal
    v = bits.view(np.float32)
    want = torch.from_numpy(v).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    got = oracles.encode_float(v, "bf16")
    number = ~np.isnan(v)
    assert np.array_equal(got[number], want[number])
    assert np.isnan(oracles.decode(got[~number], "bf16")).all()


@pytest.mark.parametrize("name", oracles.ACTIVATIONS)
def test_activations_agree_with_torch(name: str) -> None:
    v = np.linspace(-12, 12, 4001).astype(np.float32)
    x = torch.from_numpy(v).double()
    functions = torch.nn.functional
    want = {
        "none": x,
        "relu": functions.relu(x),
        "relu6": functions.relu6(x),
        "gelu": functions.gelu(x),
        "gelu_tanh": functions.gelu(x, approximate="tanh"),
        "silu": functions.silu(x),
        "hardswish": functions.hardswish(x),
        "hardsigmoid": functions.hardsigmoid(x),
    }[name]
    assert np.abs(oracles.activate64(v, name) - want.numpy()).max() < 1e-14
    edges = oracles.activate64(np.array([np.nan, np.inf, -np.inf], dtype=np.float32), name)
    assert math.isnan(edges[0])
    assert edges[1] == {"relu6": 6.0, "hardsigmoid": 1.0}.get(name, math.inf)
    if name in ("gelu_tanh", "silu", "hardswish"):
        assert math.isnan(edges[2])
    else:
        assert edges[2] == (-math.inf if name in ("none", "gelu") else 0.0)


def test_pre_activation_order_is_the_documented_one() -> None:
    rng = np.random.default_rng(6)
    acc = rng.integers(-(2**30), 2**30, (5, 3))
    xs, ws, bias = (rng.random(n).astype(np.float32) for n in (5, 3, 3))
    residual = rng.standard_normal((5, 3)).astype(np.float32)
    got = oracles.pre_activation(acc, xs, oracles.Epilogue(ws, bias, residual))
    for m in range(5):
        for n in range(3):
            v = _f32(_f32(float(acc[m, n])) * _f32(float(xs[m]) * float(ws[n])))
            assert float(got[m, n]) == _f32(_f32(v + float(bias[n])) + float(residual[m, n]))
