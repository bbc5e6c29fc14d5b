"""Integer results at the edges of the range: nothing saturates on the way, nothing wraps that should not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import oracles, tolerances
from tests.problems import MAX_K


def _accumulate(native: Any, q: np.ndarray, w: np.ndarray, zero_point: int, threads: int = 1) -> np.ndarray:
    packed = native.pack_w8a8(w, np.ones(len(w), np.float32), None, 0, 1.0, zero_point, 0)
    out = np.empty((len(q), len(w)), np.int32)
    native.linear_w8a8(q, packed, out, dtype="u8", out_dtype="i32", threads=threads)
    return out


@pytest.mark.parametrize("k", [4, 64, 1021, 4096, MAX_K])
@pytest.mark.parametrize("weight", [127, -127, -128])
def test_255_times_extreme_weight_is_exact(native: Any, isa: str, weight: int, k: int) -> None:
    q = np.full((5, k), 255, np.uint8)
    w = np.full((17, k), weight, np.int8)
    assert (_accumulate(native, q, w, 0) == 255 * weight * k).all()
    assert (_accumulate(native, q, w, 255) == 0).all()  # the zero point takes all of it back


@pytest.mark.parametrize("k", [64, 1021, MAX_K])
def test_alternating_extremes_are_exact(native: Any, isa: str, k: int) -> None:
    """Neighbours of opposite sign: where a saturating 16-bit pair sum would go wrong in both directions."""
    rng = np.random.default_rng(k)
    q = rng.choice(np.array([0, 254, 255], np.uint8), size=(7, k))
    w = rng.choice(np.array([-128, -127, 127], np.int8), size=(33, k))
    for zero_point in (0, 128, 255):
        want = oracles.linear_acc(q, zero_point, w)
        assert np.array_equal(_accumulate(native, q, w, zero_point), want)


@pytest.mark.parametrize("weight", [127, -128])
def test_convolution_with_255_and_extreme_weights_is_exact(native: Any, isa: str, weight: int) -> None:
    for channels, out_channels, groups in ((64, 9, 1), (40, 40, 40), (3, 18, 1)):
        q = np.full((1, 6, 7, channels), 255, np.uint8)
        w = np.full((out_channels, channels // groups, 3, 3), weight, np.int8)
        packed = native.pack_w8a8(w, np.ones(out_channels, np.float32), None, 0, 1.0, 0, 0, groups)
        out = np.empty((1, 4, 5, out_channels), np.int32)
        native.conv2d_w8a8(q, packed, out, (1, 1), (0, 0, 0, 0), (1, 1), dtype="u8", out_dtype="i32")
        assert (out == 255 * weight * 9 * channels // groups).all()


def test_one_more_than_the_largest_k_is_refused(native: Any, isa: str) -> None:
    w = np.zeros((2, MAX_K + 1), np.int8)
    with pytest.raises(ValueError, match=r"65[,_ ]?793"):
        native.pack_w8a8(w, np.ones(2, np.float32), None, 0, 1.0, 0, 0)
    conv = np.zeros((2, 7_311, 3, 3), np.int8)  # 9 * 7311 = 65,799
    with pytest.raises(ValueError, match=r"65[,_ ]?793"):
        native.pack_w8a8(conv, np.ones(2, np.float32), None, 0, 1.0, 0, 0)


@pytest.mark.parametrize("mode", [1, 2])
def test_row_with_nan_becomes_nan_and_leaves_the_others(native: Any, isa: str, mode: int) -> None:
    rng = np.random.default_rng(mode)
    x = rng.standard_normal((9, 70), dtype=np.float32)
    w = rng.integers(-127, 128, (21, 70), dtype=np.int8)
    clean, dirty = np.empty((9, 21), np.float32), np.empty((9, 21), np.float32)
    for activation in range(len(oracles.ACTIVATIONS)):
        packed = native.pack_w8a8(w, np.full(21, 0.01, np.float32), None, mode, 1.0, 0, activation)
        native.linear_w8a8(x, packed, clean)
        spoiled = x.copy()
        spoiled[2, 69], spoiled[5, 0], spoiled[8, 33] = np.nan, np.inf, -np.inf
        native.linear_w8a8(spoiled, packed, dirty)
        assert np.isnan(dirty[[2, 5, 8]]).all()
        others = [0, 1, 3, 4, 6, 7]
        assert np.array_equal(dirty[others], clean[others])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "u8"])
def test_empty_batch_leaves_an_empty_result(native: Any, isa: str, dtype: str) -> None:
    numpy_dtype = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16, "u8": np.uint8}[dtype]
    packed = native.pack_w8a8(np.ones((3, 5), np.int8), np.ones(3, np.float32), None, 0, 1.0, 0, 0)
    out = np.empty((0, 3), np.float32)
    native.linear_w8a8(np.empty((0, 5), numpy_dtype), packed, out, dtype=dtype)
    conv = native.pack_w8a8(np.ones((3, 5, 1, 1), np.int8), np.ones(3, np.float32), None, 0, 1.0, 0, 0)
    image = np.empty((0, 4, 4, 3), np.float32)
    native.conv2d_w8a8(np.empty((0, 4, 4, 5), numpy_dtype), conv, image, (1, 1), (0, 0, 0, 0), (1, 1), dtype=dtype)
    assert out.shape == (0, 3)
    assert image.shape == (0, 4, 4, 3)


@pytest.mark.parametrize("out_dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("k", [3, 64, 1000])
def test_result_is_close_to_float64_on_the_same_quantized_weights(
    native: Any, isa: str, k: int, out_dtype: str
) -> None:
    """The yardstick that needs no knowledge of the order of operations: dequantize everything, multiply in float64."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((13, k), dtype=np.float32)
    weight = rng.integers(-127, 128, (29, k), dtype=np.int8)
    scale = (rng.random(29) * 0.01 + 1e-3).astype(np.float32)
    packed = native.pack_w8a8(weight, scale, None, 1, 1.0, 0, 0)
    out = np.empty((13, 29), {"f32": np.float32, "bf16": np.uint16, "f16": np.float16}[out_dtype])
    native.linear_w8a8(x, packed, out, out_dtype=out_dtype)
    q, x_scale, x_zero = oracles.quantize_per_token(x)
    a = (q.astype(np.float64) - x_zero[:, None]) * x_scale[:, None].astype(np.float64)
    w = weight.astype(np.float64) * scale[:, None].astype(np.float64)
    ref = a @ w.T
    error = np.abs(oracles.decode(out, out_dtype).astype(np.float64) - ref)
    assert (error <= tolerances.dot_bound(np.abs(a), np.abs(w), ref, out_dtype)).all()
