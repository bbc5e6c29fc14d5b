"""One, two and three threads, and every ISA, give the same bits, on shapes large enough to be split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import oracles
from tests.kernels import runner

OUT = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16, "u8": np.uint8, "s8": np.int8, "i32": np.int32}
LINEAR = [(1, 1000, 1024), (7, 515, 900), (130, 300, 260), (257, 65, 515)]
CONV = [
    # batch, height, width, channels, out channels, groups, kernel, stride
    (1, 29, 31, 64, 130, 1, 1, 1),
    (2, 30, 27, 32, 67, 1, 3, 2),
    (1, 57, 40, 96, 96, 96, 3, 1),
    (1, 41, 40, 65, 65, 65, 5, 2),
    (1, 64, 65, 3, 32, 1, 3, 2),
]


def _all_equal(native: Any, run: Any, dtype: str) -> np.ndarray:
    """Run on every ISA with 1, 2 and 3 threads; the common result."""
    first = None
    for isa in native.isa_supported():
        native.set_isa(isa)
        for threads in (1, 2, 3):
            out = run(threads)
            first = out if first is None else first
            assert runner.same_bits(first, out, dtype), f"{isa} with {threads} threads differs"
    assert first is not None
    return first


@pytest.mark.parametrize("out_dtype", OUT)
@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize(("m", "n", "k"), LINEAR)
def test_linear_bits_do_not_depend_on_threads_or_isa(
    native: Any, m: int, n: int, k: int, mode: int, out_dtype: str
) -> None:
    rng = np.random.default_rng([m, mode])
    x = rng.standard_normal((m, k), dtype=np.float32)
    w = rng.integers(-127, 128, (n, k), dtype=np.int8)
    scale = (rng.random(n) * 1e-3 + 1e-4).astype(np.float32)
    bias, residual = rng.standard_normal(n, dtype=np.float32), rng.standard_normal((m, n), dtype=np.float32)
    activation = (m + n) % len(oracles.ACTIVATIONS)
    added = None if out_dtype == "i32" else residual

    def run(threads: int) -> np.ndarray:
        packed = native.pack_w8a8(w, scale, bias, mode, 0.03, 120, activation)
        out = np.zeros((m, n), OUT[out_dtype])
        native.linear_w8a8(
            x, packed, out, residual=added, out_scale=0.05, out_zero_point=9, out_dtype=out_dtype, threads=threads
        )
        return out

    got = _all_equal(native, run, out_dtype)
    if out_dtype == "i32":
        zero_point: Any = 120
        q = oracles.quantize_per_tensor(x, 0.03, 120)
        if mode:
            q, _, zero_point = oracles.quantize_per_token(x, mode == 2)
        assert np.array_equal(got, oracles.linear_acc(q, zero_point, w))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("out_dtype", ["f32", "u8", "i32"])
@pytest.mark.parametrize(("batch", "height", "width", "channels", "out_channels", "groups", "kernel", "stride"), CONV)
def test_convolution_bits_do_not_depend_on_threads_or_isa(
    native: Any,
    batch: int,
    height: int,
    width: int,
    channels: int,
    out_channels: int,
    groups: int,
    kernel: int,
    stride: int,
    out_dtype: str,
    layout: str,
) -> None:
    rng = np.random.default_rng([channels, stride])
    shape = (batch, height, width, channels)
    x = rng.standard_normal(shape, dtype=np.float32)
    w = rng.integers(-127, 128, (out_channels, channels // groups, kernel, kernel), dtype=np.int8)
    scale = (rng.random(out_channels) * 1e-3 + 1e-4).astype(np.float32)
    pad = kernel // 2
    oh, ow = ((side + 2 * pad - kernel) // stride + 1 for side in (height, width))
    given = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == "nchw" else x
    out_shape = (batch, out_channels, oh, ow) if layout == "nchw" else (batch, oh, ow, out_channels)

    def run(threads: int) -> np.ndarray:
        packed = native.pack_w8a8(w, scale, None, 0, 0.03, 120, 5, groups)
        out = np.zeros(out_shape, OUT[out_dtype])
        native.conv2d_w8a8(
            given,
            packed,
            out,
            (stride, stride),
            (pad, pad, pad, pad),
            (1, 1),
            out_scale=0.05,
            out_zero_point=9,
            out_dtype=out_dtype,
            layout=layout,
            threads=threads,
        )
        return out

    got = _all_equal(native, run, out_dtype)
    if out_dtype == "i32":
        q = oracles.quantize_per_tensor(x, 0.03, 120)
        acc = oracles.conv2d_acc(q, 120, w, (stride, stride), (pad,) * 4, (1, 1), groups)
        assert np.array_equal(got, acc.transpose(0, 3, 1, 2) if layout == "nchw" else acc)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_quantizer_bits_do_not_depend_on_threads_or_isa(native: Any, dtype: str) -> None:
    rng = np.random.default_rng(9)
    x = oracles.encode_float(rng.standard_normal((517, 771), dtype=np.float32) * np.float32(3), dtype)

    def token(threads: int) -> np.ndarray:
        q, scale, zero_point = np.zeros(x.shape, np.uint8), np.zeros(517, np.float32), np.zeros(517, np.int32)
        native.quantize_per_token(x, q, scale, zero_point, dtype=dtype, threads=threads)
        return np.concatenate([q.reshape(-1), scale.view(np.uint8), zero_point.view(np.uint8)])

    def tensor(threads: int) -> np.ndarray:
        q = np.zeros(x.shape, np.int8)
        native.quantize_per_tensor(x, q, 0.02, -7, dtype=dtype, threads=threads)
        return q

    q, scale, zero_point = oracles.quantize_per_token(oracles.decode(x, dtype))
    want = np.concatenate([q.reshape(-1), scale.view(np.uint8), zero_point.view(np.uint8)])
    assert np.array_equal(_all_equal(native, token, "u8"), want)
    assert np.array_equal(
        _all_equal(native, tensor, "s8"), oracles.quantize_per_tensor(oracles.decode(x, dtype), 0.02, -7, True)
    )
