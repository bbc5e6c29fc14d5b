"""Block-sparse layers large enough for every way that drivers cut work; 1, 2 and 3 threads give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests import oracles, tolerances
from tests.block_problems import FORMS, S8_FORMS, Form
from tests.kernels import runner
from tests.kernels.blocks import BlockLayer, layer

per_form = pytest.mark.parametrize("form", FORMS, ids=str)
per_s8_form = pytest.mark.parametrize("form", S8_FORMS, ids=str)
OUT = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16, "u8": np.uint8, "s8": np.int8, "i32": np.int32}

#: (rows, out, in, density) and the path it takes (csrc/cpu/linear_bsr.cpp, sparse_driver.cpp).
LINEAR = {
    "one row, panels cut": (1, 1040, 512, 0.1),
    "few rows": (4, 272, 1024, 0.1),
    "one narrow tile, panels cut": (16, 656, 512, 0.1),
    "wider than the widest tile": (141, 336, 300, 0.15),
    "many tiles": (1037, 80, 132, 0.15),
    "few blocks a panel": (70, 400, 256, 0.02),
    "far blocks": (37, 64, 8192, 0.004),
    "no block": (33, 96, 64, 0.0),
}

#: (batch, height, width, in, out, kernel, stride, dilation, padding, density).
CONV = {
    "pointwise": (1, 31, 29, 64, 144, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 0.15),
    "several chunks of images": (9, 40, 40, 96, 16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0.1),
    "one image beyond a chunk": (2, 90, 91, 48, 16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0.05),
    "few pixels, panels cut": (2, 5, 4, 64, 528, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0.1),
    "phases": (3, 33, 31, 16, 80, (3, 3), (2, 2), (1, 1), (0, 1, 0, 1), 0.3),
    "stride beyond the kernel": (2, 40, 43, 16, 48, (2, 2), (5, 3), (1, 1), (1, 2, 3, 0), 0.3),
    "dilated, padded on one side": (2, 22, 27, 8, 64, (5, 3), (1, 2), (2, 3), (7, 0, 0, 5), 0.3),
}


def _mask(form: Form, out: int, k: int, density: float) -> np.ndarray:
    return np.random.default_rng([out, k]).random((out // form.height, k // form.width)) < density


def _assert_close(b: BlockLayer, got: np.ndarray, a: np.ndarray, where: str) -> None:
    """float32 results of inputs ``a [M,K]`` against float64."""
    stored = np.repeat(np.repeat(b.mask, b.form.height, axis=0), b.form.width, axis=1)
    acc, absolute = oracles.block_sums(a.astype(np.float64), b.weight, stored)
    y = acc + b.bias
    bound = tolerances.added_bound(tolerances.block_bound(stored.sum(axis=1), absolute), y)
    wrong = runner.check(runner.Expected("f32", None, y=y, bound=tolerances.rounded_bound("f32", bound, y)), got)
    assert not wrong, f"{where}: {wrong}"


def _threads_agree(run: Callable[[int, str], np.ndarray], dtypes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The result in every output dtype, after 1, 2 and 3 threads made the same bits of it."""
    results = {}
    for dtype in dtypes:
        results[dtype] = run(1, dtype)
        for threads in (2, 3):
            assert runner.same_bits(results[dtype], run(threads, dtype), dtype), f"{threads} threads, {dtype}"
    return results


def _isas_agree(first: dict[str, np.ndarray], now: dict[str, np.ndarray], isa: str) -> None:
    for dtype, out in now.items():
        assert runner.same_bits(first.setdefault(dtype, out), out, dtype), f"{isa}, {dtype}"


@per_form
@pytest.mark.parametrize("path", LINEAR)
def test_linear_paths(native: Any, form: Form, path: str) -> None:
    rows, out, k, density = LINEAR[path]
    mask = _mask(form, out, k, density)
    plain, smooth = layer(form, mask), layer(form, mask, activation=5)
    rng = np.random.default_rng([rows, out, k])
    x, residual = rng.standard_normal((rows, k), dtype=np.float32), rng.standard_normal((rows, out), dtype=np.float32)
    first: dict[str, np.ndarray] = {}
    for isa in native.isa_supported():
        native.set_isa(isa)
        operator = plain.operator(native)
        packed = {"i32": plain.pack(native), "f32": plain.pack(native), "bf16": smooth.pack(native)}

        def run(threads: int, dtype: str, operator: Any = operator, packed: Any = packed) -> np.ndarray:
            result = np.zeros((rows, out), OUT[dtype])
            added = residual if dtype in ("bf16", "u8") else None
            blob = packed.get(dtype, packed["bf16"])
            operator(x, blob, result, added, out_scale=0.05, out_zero_point=9, out_dtype=dtype, threads=threads)
            return result

        got = _threads_agree(run, ("f32", "bf16", "u8", *(("i32",) if plain.exact else ())))
        if plain.exact:
            q = oracles.quantize_per_tensor(x, 0.05, 99)
            assert np.array_equal(got["i32"], oracles.linear_acc(q, 99, plain.matrix)), isa
            _isas_agree(first, got, isa)
        else:
            _assert_close(plain, got["f32"], x, isa)


@per_s8_form
@pytest.mark.parametrize("mode", [1, 2])
def test_dynamic_activations_of_many_rows(native: Any, isa: str, form: Form, mode: int) -> None:
    b = layer(form, _mask(form, 208, 260, 0.2))
    x = np.random.default_rng(mode).standard_normal((301, 260), dtype=np.float32)
    packed = native.pack_bsr(*b.blocks, b.shape, b.scale, None, mode, 1.0, 0, 0)
    q, _, zero_point = oracles.quantize_per_token(x, mode == 2)
    for threads in (1, 2, 3):
        out = np.zeros((301, 208), np.int32)
        native.linear_w8a8(x, packed, out, out_dtype="i32", threads=threads)
        assert np.array_equal(out, oracles.linear_acc(q, zero_point, b.matrix)), threads


@per_form
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("path", CONV)
def test_convolution_paths(native: Any, form: Form, path: str, layout: str) -> None:
    batch, height, width, channels, out, kernel, stride, dilation, padding, density = CONV[path]
    mask = _mask(form, out, kernel[0] * kernel[1] * channels, density)
    plain, smooth = layer(form, mask, kernel), layer(form, mask, kernel, activation=5)
    x = np.random.default_rng([height, width, channels]).standard_normal(
        (batch, height, width, channels), dtype=np.float32
    )
    zero = 99 if plain.exact else 0
    source: np.ndarray = oracles.quantize_per_tensor(x, 0.05, 99) if plain.exact else x
    patches = oracles.conv2d_patches(source.astype(np.float64) - zero, kernel, stride, padding, dilation)
    rows = patches.reshape(-1, mask.shape[1] * form.width)
    nhwc = (*patches.shape[:3], out)
    shape = nhwc if layout == "nhwc" else (nhwc[0], nhwc[3], nhwc[1], nhwc[2])
    given = x if layout == "nhwc" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    residual = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    want = rows @ plain.weight.T if plain.exact else None
    first: dict[str, np.ndarray] = {}
    for isa in native.isa_supported():
        native.set_isa(isa)
        operator = plain.operator(native)
        packed = {"i32": plain.pack(native), "f32": plain.pack(native), "bf16": smooth.pack(native)}

        def run(threads: int, dtype: str, operator: Any = operator, packed: Any = packed) -> np.ndarray:
            result = np.zeros(shape, OUT[dtype])
            more = {"layout": layout, "out_dtype": dtype, "threads": threads, "out_scale": 0.05, "out_zero_point": 9}
            added = residual if dtype == "bf16" else None
            blob = packed.get(dtype, packed["bf16"])
            operator(given, blob, result, stride, padding, dilation, added, **more)
            return result

        got = _threads_agree(run, ("f32", "bf16", *(("i32",) if plain.exact else ())))
        main = got["i32" if plain.exact else "f32"]
        flat = (main if layout == "nhwc" else main.transpose(0, 2, 3, 1)).reshape(-1, out)
        if plain.exact:
            assert np.array_equal(flat, want), isa
            _isas_agree(first, got, isa)
        else:
            _assert_close(plain, flat, rows, isa)


@per_s8_form
@pytest.mark.parametrize("weight", [127, -128])
def test_255_times_extreme_weights_is_exact(native: Any, isa: str, form: Form, weight: int) -> None:
    """The longest reductions that two bytes of index and int32 sums allow."""
    k = 65_792
    mask = np.ones((16 // form.height, k // 4), bool)
    values = np.full((mask.size, form.height, 4), weight, np.int8)
    crow = np.arange(0, mask.size + 1, mask.shape[1], dtype=np.int32)
    col = np.tile(np.arange(mask.shape[1], dtype=np.int32), mask.shape[0])
    for rows in (2, 17):
        x, out = np.full((rows, k), 255, np.uint8), np.empty((rows, 16), np.int32)
        packed = native.pack_bsr(crow, col, values, (16, k), np.ones(16, np.float32), None, 0, 1.0, 0)
        native.linear_w8a8(x, packed, out, dtype="u8", out_dtype="i32")
        assert (out == 255 * weight * k).all()
