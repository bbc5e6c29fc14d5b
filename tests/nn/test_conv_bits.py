"""`QuantConv2d` with four-bit weights: quantized as numpy says, packed into words, the results of eight bits."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcompress.nn import QuantConv2d, SparseQuantConv2d
from fastcompress.ops import W8A8Canonical, chain_program, info, pack, reference_layout, unpack
from fastcompress.ops.arithmetic import quantize_weight
from fastcompress.ops.canonical_conv4 import pack_conv_weight, unpack_conv_weight
from fastcompress.ops.chain_program import ChainStep, pack_chain
from fastcompress.quantization import weight_scales
from tests import oracles
from tests.ops.cases import IMPLEMENTATIONS, Implementation, canonical_conv2d, rng
from tests.tolerances import dot_bound

GEOMETRIES: list[dict[str, Any]] = [
    {"in_channels": 12, "out_channels": 18, "kernel_size": 3, "padding": 1},
    {"in_channels": 3, "out_channels": 9, "kernel_size": 7, "stride": 2, "padding": 3},
    {"in_channels": 12, "out_channels": 8, "kernel_size": (3, 2), "groups": 4, "dilation": 2},
    {"in_channels": 6, "out_channels": 12, "kernel_size": 3, "groups": 6},
    {"in_channels": 20, "out_channels": 33, "kernel_size": 1, "bias": False},
]


def conv(index: int = 0) -> nn.Conv2d:
    torch.manual_seed(index)
    return nn.Conv2d(**GEOMETRIES[index])


def four_bit(index: int = 0, **options: Any) -> QuantConv2d:
    options = {"input_scale": 0.03, "input_zero_point": 120, "weight_bits": 4, **options}
    return QuantConv2d.from_float(conv(index), **options)


def as_eight(layer: QuantConv2d) -> QuantConv2d:
    c: Any = layer.canonical()
    return QuantConv2d.from_canonical(
        replace(c, weight_bits=8), stride=layer.stride, padding=layer.padding4, dilation=layer.dilation
    )


def numpy_weight(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Values -8 to 7 and scales of a float32 weight: the largest magnitude of a channel is 7.5 steps."""
    w = weight.detach().numpy()
    rows = w.reshape(len(w), -1)
    scale = np.maximum(np.abs(rows).max(axis=1), np.float32(2.0**-100)) / np.float32(7.5)
    q = np.clip(np.rint(rows / scale[:, None]), -8, 7).astype(np.int8)
    return q.reshape(w.shape), scale


@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_weights_are_those_that_numpy_rounds(index: int) -> None:
    c: Any = four_bit(index).canonical()
    q, scale = numpy_weight(conv(index).weight)
    assert c.weight_bits == 4
    assert np.array_equal(c.weight.numpy(), q)
    assert np.array_equal(c.weight_scale.numpy(), scale)
    assert q.min() == -8 or q.max() == 7


@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sums_are_exact(implementation: Implementation, index: int, memory_format: torch.memory_format) -> None:
    layer = four_bit(index)
    c: Any = layer.canonical()
    x = torch.randint(0, 256, (2, layer.in_channels, 9, 8), generator=rng(index), dtype=torch.uint8)
    x = x.contiguous(memory_format=memory_format)
    got = implementation.ops.conv2d_w8a8(
        x,
        implementation.pack(c),
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding4,
        layer.dilation,
        out_dtype=torch.int32,
    )
    weight, _ = numpy_weight(conv(index).weight)
    nhwc = x.permute(0, 2, 3, 1).contiguous().numpy()
    want = oracles.conv2d_acc(nhwc, 120, weight, layer.stride, layer.padding4, layer.dilation, layer.groups)
    assert np.array_equal(got.permute(0, 2, 3, 1).numpy(), want)


@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_layer_gives_the_bits_of_eight_bit_storage(index: int) -> None:
    layer = four_bit(index, activation="silu")
    x = torch.randn(3, layer.in_channels, 10, 11, generator=rng(index))
    assert torch.equal(layer(x), as_eight(layer)(x))
    assert layer(x[:0]).shape[0] == 0
    assert layer.packed.numel() < as_eight(layer).packed.numel()


@pytest.mark.parametrize("shape", [(3, 2, 1, 1), (2, 3, 3, 3), (5, 1, 2, 4), (1, 9, 1, 1)])
def test_words_hold_the_weights_in_order(shape: tuple[int, ...]) -> None:
    weight = torch.randint(-8, 8, shape, generator=rng(1), dtype=torch.int8)
    words = pack_conv_weight(weight)
    rows = weight.numpy().reshape(shape[0], -1).astype(np.int64) + 8
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    want = (rows.reshape(shape[0], -1, 8) << np.arange(0, 32, 4)).sum(axis=-1)
    assert np.array_equal(words.numpy().view(np.uint32).astype(np.int64), want)
    assert torch.equal(unpack_conv_weight(words, shape), weight)
    with pytest.raises(ValueError, match=r"unpack_conv_weight: `words` has shape"):
        unpack_conv_weight(words, (shape[0] + 1, *shape[1:]))


def test_state_dict_holds_words_and_comes_back() -> None:
    layer, other = four_bit(2), four_bit(2, input_scale=0.05, input_zero_point=3)
    state = layer.state_dict()
    assert {name: (v.dtype, tuple(v.shape)) for name, v in state.items()} == {
        "weight_packed": (torch.int32, (8, 3)),  # 3 inputs x 3 x 2 taps
        "weight_scale": (torch.float32, (8,)),
        "bias": (torch.float32, (8,)),
        "input_scale": (torch.float32, ()),
        "input_zero_point": (torch.int32, ()),
    }
    changed = {**state, "weight_packed": ~state["weight_packed"]}
    other.load_state_dict(changed)
    c: Any = other.canonical()
    assert torch.equal(c.weight, -1 - layer.canonical().weight)  # type: ignore[union-attr]
    other.load_state_dict(state)
    x = torch.randn(1, 12, 9, 9, generator=rng(0))
    assert torch.equal(other(x), layer(x))
    assert other.weight_bits == 4


def test_states_of_other_bits_are_refused() -> None:
    four, eight = four_bit(0), as_eight(four_bit(0))
    before = four.packed.clone()
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*weight_packed.*Unexpected key.*\"weight\""):
        four.load_state_dict(eight.state_dict())
    with pytest.raises(RuntimeError, match=r"shape mismatch"):
        four.load_state_dict({**four.state_dict(), "weight_packed": torch.zeros(18, 15, dtype=torch.int32)})
    assert torch.equal(four.packed, before)


def test_copies_and_pickles_keep_the_bits() -> None:
    layer = four_bit(0)
    x = torch.randn(1, 12, 6, 6, generator=rng(0))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False))
    for other in (*copies, layer.with_activation("none"), layer.repack()):
        assert other.weight_bits == 4
        assert torch.equal(other.packed, layer.packed)
        assert torch.equal(other(x), layer(x))


def test_what_the_layer_says() -> None:
    layer = four_bit(0)
    assert "weight_bits=4" in repr(layer)
    assert "weight_bits" not in repr(as_eight(layer))
    assert layer.kernel_name().startswith("conv2d_w4a8_")
    assert as_eight(layer).kernel_name().startswith("conv2d_w8a8_")
    q, scale = numpy_weight(conv(0).weight)
    assert np.array_equal(layer.dequantize().numpy(), q * scale[:, None, None, None])


def test_gradient_passes_through_the_dequantized_weight() -> None:
    layer = four_bit(4)
    x = torch.rand(2, 20, 3, 3, generator=rng(0)).requires_grad_()
    layer(x).sum().backward()
    q, scale = numpy_weight(conv(4).weight)
    w = (q * scale[:, None, None, None].astype(np.float64))[:, :, 0, 0].T  # [in, out]: a product with ones
    ones = np.ones((1, w.shape[1]))
    want = ones @ w.T
    assert x.grad is not None
    assert (np.abs(x.grad[0, :, 0, 0].numpy() - want) <= dot_bound(ones, np.abs(w), want)).all()


@pytest.mark.parametrize("make", [pack, reference_layout.encode])
def test_both_layouts_remember_the_bits(make: Any) -> None:
    for bits in (4, 8):
        c = canonical_conv2d(7, 3, weight_bits=bits)
        c = replace(c, weight=c.weight >> 4)
        packed = make(c)
        back: Any = unpack(packed)
        assert torch.equal(back.weight, c.weight)
        assert back.weight_bits == info(packed)["weight_bits"] == bits


def _c(**changes: Any) -> W8A8Canonical:
    c = canonical_conv2d(6, 2, weight_bits=4)
    return replace(c, **{"weight": c.weight >> 4, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 5}, "pack: `weight_bits` must be 4 or 8, got 5"),
        ({"weight": torch.full((6, 2, 3, 3), 8, dtype=torch.int8)}, "values from 8 to 8, four bits hold -8 to 7"),
        ({"weight": torch.full((6, 2, 3, 3), -9, dtype=torch.int8)}, "values from -9 to -9, four bits hold -8 to 7"),
        ({"weight": torch.ones(6, 1, 3, 3, dtype=torch.int8), "groups": 6}, "must be 8 for a depthwise convolution"),
        ({"weight": torch.ones(6, 4, dtype=torch.int8)}, "a linear layer with four bits is a W4Canonical"),
    ],
)
def test_pack_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(_c(**changes))


def test_layers_refuse() -> None:
    with pytest.raises(ValueError, match="must be 8 for a depthwise convolution"):
        QuantConv2d.from_float(nn.Conv2d(8, 8, 3, groups=8), weight_bits=4)
    with pytest.raises(ValueError, match="`bits` must be 4 or 8, got 3"):
        four_bit(0, weight_bits=3)
    with pytest.raises(ValueError, match="`weight_bits` must be 8 for blocks, got 4"):
        SparseQuantConv2d.from_float(nn.Conv2d(16, 16, 3), weight_bits=4)
    for function in (
        lambda: quantize_weight(torch.ones(2, 2), bits=2),
        lambda: weight_scales(torch.ones(2, 2), bits=2),
    ):
        with pytest.raises(ValueError, match="`bits` must be 4 or 8, got 2"):
            function()


def test_a_chain_takes_eight_bits_only() -> None:
    with pytest.raises(ValueError, match="step 0: `packed` holds weights of 4 bits, expected 8"):
        pack_chain([ChainStep(pack(_c()))])


def test_a_forged_chain_with_four_bits_is_refused(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    """The kernel checks for itself: a chain's calls would read panels of eight bits behind those of four."""
    monkeypatch.setattr(chain_program, "_check_step", lambda index, step: None)
    x = torch.zeros(1, 2, 5, 5, dtype=torch.uint8)
    run = torch.ops.fastcompress.conv2d_chain
    program = pack_chain([ChainStep(pack(replace(_c(), weight_bits=8)))])
    assert run(x, program, 6, [-2, 1], [-2, 1], torch.float32).shape == (1, 6, 3, 3)
    with pytest.raises(RuntimeError, match="a layer in it is no int8 convolution"):
        run(x, pack_chain([ChainStep(pack(_c()))]), 6, [-2, 1], [-2, 1], torch.float32)
