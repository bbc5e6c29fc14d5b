"""Blobs: exact round trips, headers, and every way a blob can be wrong."""

import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcompress.errors import PackedBlobError
from fastcompress.ops import ACTIVATIONS, W8A8Canonical, check, info, native, pack, reference_layout, unpack
from tests.ops.cases import canonical_conv2d, canonical_linear

LAYOUTS = [pytest.param(pack, id="this-machine"), pytest.param(reference_layout.encode, id="reference")]


def assert_same(a: W8A8Canonical, b: W8A8Canonical) -> None:
    assert a.weight.dtype == b.weight.dtype == torch.int8
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(a.weight_scale, b.weight_scale)
    assert (a.bias is None) == (b.bias is None)
    assert a.bias is None or b.bias is None or torch.equal(a.bias, b.bias)
    for name in ("input_mode", "input_scale", "input_zero_point", "activation", "groups", "weight_bits"):
        assert getattr(a, name) == getattr(b, name), name


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    k=st.integers(1, 140),
    mode=st.sampled_from(["static", "dynamic", "dynamic_symmetric"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_linear_round_trip(n: int, k: int, mode: str, activation: str, bias: bool, seed: int) -> None:
    c = canonical_linear(n, k, seed, input_mode=mode, activation=activation, **({} if bias else {"bias": None}))
    for make in (pack, reference_layout.encode):
        packed = make(c)
        check(packed)
        assert_same(unpack(packed), c)


@settings(max_examples=40, deadline=None)
@given(
    per_group=st.integers(1, 20),
    groups=st.integers(1, 5),
    per_group_out=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_conv2d_round_trip(per_group: int, groups: int, per_group_out: int, kernel: tuple[int, int]) -> None:
    c = canonical_conv2d(groups * per_group_out, per_group, kernel, groups=groups)
    for make in (pack, reference_layout.encode):
        packed = make(c)
        check(packed)
        assert_same(unpack(packed), c)


def test_input_scale_is_rounded_to_float32_at_once() -> None:
    c = canonical_linear(input_scale=0.1)
    assert c.input_scale == torch.tensor(0.1).item() != 0.1


@pytest.mark.parametrize("make", LAYOUTS)
def test_info(make: Any) -> None:
    header = info(make(canonical_conv2d(6, 2, (3, 5), groups=2, activation="relu6")))
    assert (header["family"], header["n"], header["k"], header["groups"]) == ("conv2d_w8a8", 6, 30, 2)
    assert tuple(header["kernel_size"]) == (3, 5)
    assert header["bytes"] == make(canonical_conv2d(6, 2, (3, 5), groups=2)).numel()
    assert header["layout_version"] >= 1
    expected = "reference" if make is reference_layout.encode or native.module is None else native.module.isa()
    assert header["isa"] == expected


@pytest.mark.parametrize("make", LAYOUTS)
def test_unpack_copies(make: Any) -> None:
    packed = make(canonical_linear())
    before = packed.clone()
    c = unpack(packed)
    c.weight.zero_()
    c.weight_scale.zero_()
    assert torch.equal(packed, before)


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_flipped_byte_is_found(make: Any) -> None:
    packed = make(canonical_linear(3, 5))
    for position in range(packed.numel()):
        broken = packed.clone()
        broken[position] ^= 0x10
        with pytest.raises(RuntimeError):
            check(broken)
    check(packed)


@pytest.mark.parametrize("make", LAYOUTS)
@pytest.mark.parametrize("length", [0, 8, 255, 256, 300])
def test_truncated(make: Any, length: int) -> None:
    packed = make(canonical_linear())[:length]
    for function in (check, unpack, info):
        with pytest.raises(RuntimeError):
            function(packed)


def _header_with(offset: int, value: int) -> torch.Tensor:
    """A reference blob with one header byte changed and the header checksum made right again."""
    packed = reference_layout.encode(canonical_linear())
    packed[offset] = value
    head = packed[:248].numpy().tobytes()
    packed[248:256] = torch.frombuffer(bytearray(struct.pack("<Q", zlib.crc32(head))), dtype=torch.uint8)
    return packed


def test_messages_of_the_reference_layout() -> None:
    remedy = "; make it again from the canonical tensors (layer.repack(), or load the state_dict)"
    packed = reference_layout.encode(canonical_linear())
    payload, header = packed.clone(), packed.clone()
    payload[260] ^= 1
    header[100] ^= 1
    cases = {
        "packed blob: payload checksum mismatch, the weights are corrupt": payload,
        "packed blob: header checksum mismatch, the header is corrupt": header,
        "packed blob: layout version 9, this build reads version 3": _header_with(8, 9),
        f"packed blob: {packed.numel() - 1} bytes, the header announces {packed.numel()}": packed[:-1],
        "packed blob: 10 bytes are shorter than the 256-byte header": packed[:10],
    }
    for message, blob in cases.items():
        with pytest.raises(PackedBlobError) as caught:
            check(blob)
        assert str(caught.value) == message + remedy


def test_wrong_argument_types() -> None:
    with pytest.raises(TypeError, match=r"packed blob: expected a uint8 tensor, got torch\.float32"):
        unpack(torch.zeros(300))
    with pytest.raises(TypeError, match="packed blob: expected a uint8 tensor, got bytes"):
        check(b"x" * 300)  # type: ignore[arg-type]


def test_blob_in_strange_memory_is_read_correctly() -> None:
    c = canonical_linear()
    blob = reference_layout.encode(c)
    shifted = torch.empty(blob.numel() + 1, dtype=torch.uint8)[1:]
    shifted.copy_(blob)
    strided = torch.empty(blob.numel(), 2, dtype=torch.uint8)[:, 0]
    strided.copy_(blob)
    for view in (shifted, strided):
        check(view)
        assert_same(unpack(view), c)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"weight": torch.zeros(5, 7)},
            TypeError,
            "pack: `weight` must be an int8 tensor, got torch.float32; quantize_weight makes one from floats",
        ),
        (
            {"weight": torch.zeros(5, 0, dtype=torch.int8)},
            ValueError,
            "pack: `weight` must be [out, in] or [out, in/groups, kh, kw] with no empty dimension, got shape [5, 0]",
        ),
        (
            {"weight": torch.zeros(5, 65_794, dtype=torch.int8)},
            ValueError,
            "pack: `weight` has 65794 inputs per output, at most 65793 keep int32 sums exact",
        ),
        (
            {"weight_scale": torch.ones(5).double()},
            TypeError,
            "pack: `weight_scale` has dtype float64, allowed: float32; convert it with .float()",
        ),
        (
            {"weight_scale": torch.tensor([1.0, 1.0, float("nan"), 1.0, 1.0])},
            ValueError,
            "pack: `weight_scale` must be positive, normal and finite, got nan at output channel 2",
        ),
        ({"bias": torch.ones(4)}, ValueError, "pack: `bias` has shape [4], expected [5] (output channels)"),
        (
            {"bias": torch.ones(5).half()},
            TypeError,
            "pack: `bias` must be a float32 tensor or None, got torch.float16; convert it with .float()",
        ),
        (
            {"bias": torch.full((5,), float("inf"))},
            ValueError,
            "pack: `bias` holds NaN or infinity; repair the model before compressing it",
        ),
        (
            {"input_mode": "fast"},
            ValueError,
            "pack: `input_mode` must be one of static, dynamic, dynamic_symmetric, got 'fast'",
        ),
        (
            {"activation": "tanh"},
            ValueError,
            "pack: `activation` must be one of none, relu, relu6, gelu, gelu_tanh, silu, "
            "hardswish, hardsigmoid, got 'tanh'",
        ),
        (
            {"input_scale": -1.0},
            ValueError,
            "pack: `input_scale` must be positive, normal and finite in float32, got -1.0",
        ),
        ({"input_zero_point": 256}, ValueError, "pack: `input_zero_point` must lie in [0, 255], got 256"),
        (
            {"input_mode": "dynamic", "input_scale": 2.0},
            ValueError,
            "pack: `input_mode` 'dynamic' computes its own "
            "parameters; `input_scale` must be 1.0 and `input_zero_point` 0, got 2.0 and 0",
        ),
        (
            {"groups": 5},
            ValueError,
            "pack: `groups` must divide the 5 output channels (and be 1 for a linear layer), got 5",
        ),
    ],
)
def test_pack_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        pack(canonical_linear(**changes))
    assert str(caught.value) == message


def test_convolutions_are_static() -> None:
    with pytest.raises(ValueError, match="convolutions take static activations only, got `input_mode` 'dynamic'"):
        pack(canonical_conv2d(input_mode="dynamic"))
