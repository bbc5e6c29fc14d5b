"""Packed blobs: exact round trips, and no blob that is damaged or meant for another ISA is ever run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

HEADER_BYTES = 256
REMEDY = r"(?i)repack|pack.* again|re-?load|convert.* again"

SHAPES: list[tuple[tuple[int, ...], int]] = [
    *(((n, k), 1) for n, k in ((1, 1), (3, 5), (16, 64), (63, 127), (64, 4), (65, 130), (129, 257), (200, 3))),
    *(((o, i, 1, 1), 1) for o, i in ((1, 1), (17, 9), (64, 64))),
    ((8, 3, 3, 3), 1),
    ((33, 5, 3, 2), 1),
    ((12, 4, 3, 3), 3),
    ((7, 1, 3, 3), 7),
    ((70, 1, 5, 5), 70),
    ((36, 1, 3, 3), 18),
    ((5, 1, 7, 1), 5),
]


def _canonical(shape: tuple[int, ...], seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, size=shape, dtype=np.int8)
    scale = np.exp(rng.uniform(-20, 5, size=shape[0])).astype(np.float32)
    bias = rng.standard_normal(shape[0], dtype=np.float32) if seed % 2 else None
    return weight, scale, bias


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_unpack_gives_back_every_bit(native: Any, isa: str, shape: tuple[int, ...], groups: int) -> None:
    for seed in range(8):
        weight, scale, bias = _canonical(shape, seed)
        mode = seed % 3 if len(shape) == 2 else 0
        input_scale, zero_point = (0.0123, 200) if mode == 0 else (1.0, 0)
        packed = native.pack_w8a8(weight, scale, bias, mode, input_scale, zero_point, seed, groups)
        assert packed.dtype == np.uint8
        assert packed.ndim == 1
        native.blob_check(packed)
        back = native.unpack_w8a8(packed)
        assert back["weight"].dtype == np.int8
        assert back["weight"].shape == shape
        assert np.array_equal(back["weight"], weight)
        assert np.array_equal(back["weight_scale"].view(np.uint32), scale.view(np.uint32))
        assert (back["bias"] is None) == (bias is None)
        if bias is not None:
            assert np.array_equal(back["bias"].view(np.uint32), bias.view(np.uint32))
        assert back["input_mode"] == mode
        assert back["input_zero_point"] == zero_point
        assert np.float32(back["input_scale"]) == np.float32(input_scale)
        assert back["activation"] == seed
        assert back["groups"] == groups


def test_packing_is_deterministic(native: Any, isa: str) -> None:
    weight, scale, bias = _canonical((65, 130), 1)
    a, b = (native.pack_w8a8(weight, scale, bias, 1, 1.0, 0, 3) for _ in range(2))
    assert np.array_equal(a, b)


def test_blob_names_its_isa(native: Any, isa: str) -> None:
    weight, scale, bias = _canonical((6, 10), 0)
    info = native.blob_info(native.pack_w8a8(weight, scale, bias, 1, 1.0, 0, 0))
    assert (info["isa"], info["family"], info["n"], info["k"]) == (isa, "linear_w8a8", 6, 10)


def _run(native: Any, packed: np.ndarray) -> None:
    native.linear_w8a8(np.ones((2, 10), np.float32), packed, np.empty((2, 6), np.float32))


def test_every_damaged_header_byte_is_found_by_the_kernel(native: Any, isa: str) -> None:
    weight, scale, bias = _canonical((6, 10), 1)
    good = native.pack_w8a8(weight, scale, bias, 1, 1.0, 0, 0)
    _run(native, good)
    for position in range(HEADER_BYTES):
        for flip in (0x01, 0x80, 0xFF):
            bad = good.copy()
            bad[position] ^= flip
            with pytest.raises(RuntimeError, match=REMEDY):
                _run(native, bad)
            with pytest.raises(RuntimeError):
                native.blob_check(bad)
            with pytest.raises(RuntimeError):
                native.unpack_w8a8(bad)


def test_every_damaged_payload_byte_is_found_by_the_check(native: Any, isa: str) -> None:
    weight, scale, bias = _canonical((6, 10), 1)
    good = native.pack_w8a8(weight, scale, bias, 1, 1.0, 0, 0)
    for position in range(HEADER_BYTES, len(good)):
        bad = good.copy()
        bad[position] ^= 1 << (position % 8)
        with pytest.raises(RuntimeError, match=r"(?i)checksum"):
            native.blob_check(bad)


def test_truncated_and_foreign_blobs_are_refused(native: Any, isa: str) -> None:
    weight, scale, bias = _canonical((6, 10), 1)
    good = native.pack_w8a8(weight, scale, bias, 1, 1.0, 0, 0)
    shorter = [good[:size].copy() for size in (0, 1, 8, 255, 256, len(good) - 1)]
    longer = np.concatenate([good, np.zeros(64, np.uint8)])
    noise = np.random.default_rng(0).integers(0, 256, len(good), dtype=np.uint8)
    for bad in (*shorter, longer, noise, np.zeros(len(good), np.uint8)):
        for use in (lambda b: _run(native, b), native.unpack_w8a8, native.blob_check):
            with pytest.raises(RuntimeError):
                use(bad)


def test_blob_of_another_isa_is_refused_with_the_remedy(native: Any) -> None:
    weight, scale, bias = _canonical((6, 10), 1)
    names = native.isa_supported()
    refused = 0
    for made_for in names:
        native.set_isa(made_for)
        packed = native.pack_w8a8(weight, scale, bias, 1, 1.0, 0, 0)
        for run_on in names:
            native.set_isa(run_on)
            if run_on == made_for:
                _run(native, packed)
                continue
            with pytest.raises(RuntimeError, match=made_for) as caught:
                _run(native, packed)
            assert run_on in str(caught.value)
            assert caught.match(REMEDY)
            refused += 1
            assert np.array_equal(native.unpack_w8a8(packed)["weight"], weight)  # the way out: unpack, then pack again
    assert refused == len(names) * (len(names) - 1)


def test_convolution_blob_is_no_linear_blob_and_vice_versa(native: Any, isa: str) -> None:
    weight, scale, bias = _canonical((6, 10), 1)
    linear = native.pack_w8a8(weight, scale, bias, 0, 1.0, 0, 0)
    conv = native.pack_w8a8(weight.reshape(6, 10, 1, 1), scale, bias, 0, 1.0, 0, 0)
    with pytest.raises(ValueError, match="conv2d_w8a8"):
        _run(native, conv)
    with pytest.raises(ValueError, match="linear_w8a8"):
        native.conv2d_w8a8(
            np.ones((1, 2, 2, 10), np.float32), linear, np.empty((1, 2, 2, 6), np.float32), (1, 1), (0, 0, 0, 0), (1, 1)
        )
