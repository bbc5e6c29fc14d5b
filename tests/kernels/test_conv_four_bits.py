"""Convolutions with four-bit weights: stored in half the memory, and the same integers as with eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import oracles
from tests.kernels import runner

HEADER_BYTES = 256
SHAPES: list[tuple[tuple[int, int, int, int], int]] = [
    ((1, 1, 1, 1), 1),
    ((17, 9, 1, 1), 1),
    ((64, 64, 1, 1), 1),
    ((8, 3, 3, 3), 1),
    ((64, 3, 7, 7), 1),
    ((33, 5, 3, 2), 1),
    ((12, 4, 3, 3), 3),
    ((36, 1, 3, 3), 18),
    ((5, 1, 7, 1), 1),
]
CONV = [
    # batch, height, width, channels, out channels, groups, kernel, stride
    (1, 29, 31, 64, 130, 1, 1, 1),
    (2, 30, 27, 32, 67, 1, 3, 2),
    (3, 9, 8, 60, 300, 3, 3, 1),
    (1, 64, 65, 3, 32, 1, 3, 2),
    (40, 12, 12, 96, 40, 1, 3, 1),
]


def _weights(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-8, 8, size=shape, dtype=np.int8), (rng.random(shape[0]) * 1e-2 + 1e-3).astype(np.float32)


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_unpack_gives_back_every_weight_on_every_isa(
    native: Any, isa: str, shape: tuple[int, int, int, int], groups: int
) -> None:
    weight, scale = _weights(shape)
    bias = np.arange(shape[0], dtype=np.float32)
    packed = native.pack_w8a8(weight, scale, bias, 0, 0.5, 7, 1, groups, 4)
    native.blob_check(packed)
    back = native.unpack_w8a8(packed)
    assert np.array_equal(back["weight"], weight)
    assert np.array_equal(back["weight_scale"], scale)
    assert np.array_equal(back["bias"], bias)
    assert (back["weight_bits"], back["groups"], back["activation"]) == (4, groups, 1)
    info = native.blob_info(packed)
    assert (info["weight_bits"], info["family"], info["isa"]) == (4, "conv2d_w8a8", isa)
    eight = native.pack_w8a8(weight, scale, bias, 0, 0.5, 7, 1, groups)
    assert native.blob_info(eight)["weight_bits"] == 8
    # Sums, scales and biases, twelve bytes a channel of whole panels, stay as they are; the panels are halved.
    channels = 12 * groups * -(-(shape[0] // groups) // 16) * 16
    assert 2 * (packed.size - HEADER_BYTES - channels) == eight.size - HEADER_BYTES - channels


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(("batch", "height", "width", "channels", "out_channels", "groups", "kernel", "stride"), CONV)
def test_four_bits_give_the_bits_of_eight_on_every_isa_and_thread_count(
    native: Any,
    batch: int,
    height: int,
    width: int,
    channels: int,
    out_channels: int,
    groups: int,
    kernel: int,
    stride: int,
    layout: str,
) -> None:
    rng = np.random.default_rng([channels, stride])
    shape = (batch, height, width, channels)
    q = rng.integers(0, 256, shape, dtype=np.uint8)
    weight, scale = _weights((out_channels, channels // groups, kernel, kernel), 1)
    pad = kernel // 2
    oh, ow = ((side + 2 * pad - kernel) // stride + 1 for side in (height, width))
    x = np.ascontiguousarray(q.transpose(0, 3, 1, 2)) if layout == "nchw" else q
    out_shape = (batch, out_channels, oh, ow) if layout == "nchw" else (batch, oh, ow, out_channels)
    acc = oracles.conv2d_acc(q, 120, weight, (stride, stride), (pad,) * 4, (1, 1), groups)
    want = np.ascontiguousarray(acc.transpose(0, 3, 1, 2)) if layout == "nchw" else acc

    def run(packed: np.ndarray, out_dtype: str, threads: int) -> np.ndarray:
        out = np.zeros(out_shape, np.int32 if out_dtype == "i32" else np.uint16)
        geometry = ((stride, stride), (pad,) * 4, (1, 1))
        native.conv2d_w8a8(x, packed, out, *geometry, dtype="u8", out_dtype=out_dtype, layout=layout, threads=threads)
        return out

    first = None
    for isa in native.isa_supported():
        native.set_isa(isa)
        eight = run(native.pack_w8a8(weight, scale, None, 0, 0.03, 120, 5, groups), "bf16", 1)
        first = eight if first is None else first
        packed = native.pack_w8a8(weight, scale, None, 0, 0.03, 120, 5, groups, 4)
        for threads in (1, 2, 3):
            assert np.array_equal(run(packed, "i32", threads), want), f"{isa}, {threads} threads"
            assert runner.same_bits(run(packed, "bf16", threads), first, "bf16"), f"{isa}, {threads} threads"


def test_layers_that_follow_each_other_share_the_workspace(native: Any, isa: str) -> None:
    """A larger layer, a smaller one, the larger again: nothing of another layer's panels is left in the way."""
    q = np.random.default_rng(3).integers(0, 256, (1, 6, 6, 40), dtype=np.uint8)
    layers = [(100, 3), (5, 1), (100, 3), (48, 2)]
    for seed, (out_channels, kernel) in enumerate(layers):
        weight, scale = _weights((out_channels, 40, kernel, kernel), seed)
        side = 7 - kernel
        out = np.zeros((1, side, side, out_channels), np.int32)
        packed = native.pack_w8a8(weight, scale, None, 0, 1.0, 9, 0, 1, 4)
        native.conv2d_w8a8(q, packed, out, (1, 1), (0,) * 4, (1, 1), dtype="u8", out_dtype="i32", threads=2)
        assert np.array_equal(out, oracles.conv2d_acc(q, 9, weight, (1, 1), (0,) * 4, (1, 1), 1))


def test_an_empty_batch_is_fine(native: Any, isa: str) -> None:
    weight, scale = _weights((3, 5, 1, 1))
    packed = native.pack_w8a8(weight, scale, None, 0, 1.0, 0, 0, 1, 4)
    out = np.empty((0, 4, 4, 3), np.float32)
    native.conv2d_w8a8(np.empty((0, 4, 4, 5), np.float32), packed, out, (1, 1), (0,) * 4, (1, 1))
    assert out.shape == (0, 4, 4, 3)


@pytest.mark.parametrize("value", [-128, -9, 8, 127])
def test_a_value_that_four_bits_cannot_hold_is_refused(native: Any, value: int) -> None:
    weight, scale = _weights((6, 4, 3, 3))
    weight[3, 1, 2, 0] = value
    with pytest.raises(ValueError, match=rf"weight holds {value} in output channel 3, four bits hold -8 to 7"):
        native.pack_w8a8(weight, scale, None, 0, 1.0, 0, 0, 1, 4)


def test_other_bits_and_other_layers_are_refused(native: Any) -> None:
    weight, scale = _weights((6, 4, 3, 3))
    for bits in (0, 2, 3, 5, 16, -4):
        with pytest.raises(ValueError, match=rf"weight_bits is {bits}, allowed: 4 and 8"):
            native.pack_w8a8(weight, scale, None, 0, 1.0, 0, 0, 1, bits)
    with pytest.raises(ValueError, match="pack_w4 for a linear"):
        native.pack_w8a8(weight.reshape(6, -1), scale, None, 0, 1.0, 0, 0, 1, 4)
    with pytest.raises(ValueError, match="not depthwise; use 8"):
        native.pack_w8a8(weight[:, :1].copy(), scale, None, 0, 1.0, 0, 0, 6, 4)


def test_the_blob_is_no_layer_with_groups_of_inputs(native: Any, isa: str) -> None:
    weight, scale = _weights((6, 8, 1, 1))
    packed = native.pack_w8a8(weight, scale, None, 0, 1.0, 0, 0, 1, 4)
    with pytest.raises(ValueError, match="not 4-bit ones in groups"):
        native.unpack_w4(packed)
    with pytest.raises(ValueError, match=r"four-bit convolution; use conv2d_w8a8"):
        native.linear_w8a8(np.ones((2, 8), np.float32), packed, np.empty((2, 6), np.float32))


def _sealed(native: Any, packed: np.ndarray) -> np.ndarray:
    """The blob with a header checksum that fits; `blob_checksum` is the package's own, a forger has it too."""
    from fastcompress.ops.blob_checksum import blob_checksum

    packed[HEADER_BYTES - 8 : HEADER_BYTES] = np.frombuffer(
        int(blob_checksum(packed[: HEADER_BYTES - 8].tobytes())).to_bytes(8, "little"), np.uint8
    )
    return packed


#: Where blob.h's header holds them.
VALUE_BITS, GROUP_SIZE = 196, 200


@pytest.mark.parametrize(
    ("place", "value"), [(VALUE_BITS, 0), (VALUE_BITS, 8), (VALUE_BITS, 3), (VALUE_BITS, -4), (GROUP_SIZE, 8)]
)
def test_a_forged_header_is_refused(native: Any, isa: str, place: int, value: int) -> None:
    """Other bits, or groups of inputs, would make kernels read beyond the blob."""
    weight, scale = _weights((16, 8, 3, 3))
    packed = native.pack_w8a8(weight, scale, None, 0, 1.0, 0, 0, 1, 4)
    assert _sealed(native, packed.copy()).tobytes() == packed.tobytes()
    assert int.from_bytes(packed[VALUE_BITS : VALUE_BITS + 4].tobytes(), "little") == 4
    packed[place : place + 4] = np.frombuffer(value.to_bytes(4, "little", signed=True), np.uint8)
    with pytest.raises(RuntimeError, match="inconsistent fields"):
        native.blob_check(_sealed(native, packed))


def test_eight_bits_cannot_be_declared_four(native: Any, isa: str) -> None:
    """Of a linear layer, a depthwise one, and a convolution whose panels are twice as long."""
    for shape, groups in (((16, 8), 1), ((16, 1, 3, 3), 16), ((16, 8, 3, 3), 1)):
        weight, scale = _weights(shape)
        packed = native.pack_w8a8(weight, scale, None, 0, 1.0, 0, 0, groups)
        packed[VALUE_BITS] = 4
        with pytest.raises(RuntimeError, match="inconsistent fields"):
            native.blob_check(_sealed(native, packed))
