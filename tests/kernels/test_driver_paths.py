"""Shapes large enough for every way that the drivers cut work: the seeded problems are too small to reach them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import oracles

#: (rows, in, out) and the path it takes (csrc/cpu/gemm_driver.cpp, linear_w8a8.cpp).
LINEAR = {
    "wide tiles": (1037, 48, 201),
    "wide tiles, several column tasks": (700, 96, 530),
    "row blocks, uneven": (301, 130, 97),
    "row blocks, several rounds": (1100, 257, 64),
    "columns, few rows": (40, 300, 1000),
    "rows a multiple of 512 bytes apart": (70, 1024, 272),
    "weights beyond the cache": (33, 2048, 2100),
}

#: (batch, height, width, channels, out channels, groups, kernel, stride).
CONV = {
    "pointwise, wide tiles": (1, 29, 31, 24, 144, 1, 1, 1),
    "pointwise, strided": (2, 33, 31, 64, 80, 1, 1, 2),
    "several chunks of images": (9, 40, 40, 96, 20, 1, 3, 1),
    "first layer": (2, 65, 67, 3, 40, 1, 7, 2),
    "groups": (3, 20, 21, 24, 36, 4, 3, 1),
    "depthwise 3x3": (2, 50, 61, 40, 40, 40, 3, 1),
    "depthwise 5x5, strided": (1, 45, 47, 72, 72, 72, 5, 2),
    "depthwise, long rows": (1, 4, 300, 200, 200, 200, 3, 1),
}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("path", LINEAR)
def test_linear_paths_are_exact(native: Any, isa: str, path: str, threads: int) -> None:
    rows, k, n = LINEAR[path]
    rng = np.random.default_rng([rows, k, n])
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    x = (rng.standard_normal((rows, k)) * 3).astype(np.float32)
    dynamic = native.pack_w8a8(w, np.ones(n, np.float32), None, 1, 1.0, 0, 0)
    got = np.zeros((rows, n), np.int32)
    native.linear_w8a8(x, dynamic, got, out_dtype="i32", threads=threads)
    q, _, zero_point = oracles.quantize_per_token(x, False)
    assert np.array_equal(got, oracles.linear_acc(q, zero_point, w))

    static = native.pack_w8a8(w, np.ones(n, np.float32), None, 0, 1.0, 77, 0)
    native.linear_w8a8(q, static, got, dtype="u8", out_dtype="i32", threads=threads)
    assert np.array_equal(got, oracles.linear_acc(q, 77, w))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("path", CONV)
def test_convolution_paths_are_exact(native: Any, isa: str, path: str, layout: str) -> None:
    batch, height, width, channels, out_channels, groups, kernel, stride = CONV[path]
    rng = np.random.default_rng([height, width, channels])
    w = rng.integers(-128, 128, (out_channels, channels // groups, kernel, kernel), dtype=np.int8)
    x = (rng.standard_normal((batch, height, width, channels)) * 2).astype(np.float32)
    padding = (kernel // 2, kernel // 2, kernel // 2, kernel // 2)
    q = oracles.quantize_per_tensor(x, 0.05, 99)
    want = oracles.conv2d_acc(q, 99, w, (stride, stride), padding, (1, 1), groups)
    packed = native.pack_w8a8(w, np.ones(out_channels, np.float32), None, 0, 0.05, 99, 0, groups)
    first = layout == "nchw"
    for threads in (1, 2, 3):
        for given, dtype in ((x, "f32"), (q, "u8")):
            out = np.zeros(want.transpose(0, 3, 1, 2).shape if first else want.shape, np.int32)
            source = np.ascontiguousarray(given.transpose(0, 3, 1, 2)) if first else given
            native.conv2d_w8a8(
                source,
                packed,
                out,
                (stride, stride),
                padding,
                (1, 1),
                dtype=dtype,
                out_dtype="i32",
                layout=layout,
                threads=threads,
            )
            assert np.array_equal(out.transpose(0, 2, 3, 1) if first else out, want), f"{dtype}, {threads} threads"
