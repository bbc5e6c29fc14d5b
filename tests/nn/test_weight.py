"""``layer.weight`` and ``layer.bias``: floats that exist only while somebody reads them, and cannot be trained."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcompress.nn import LazyWeight, QuantConv2d, QuantLinear
from fastcompress.ops import packing


@pytest.fixture
def layer() -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(6, 4), input_mode="dynamic")


def test_metadata_costs_no_dequantization(layer: QuantLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any) -> None:
        raise AssertionError("values were read")

    monkeypatch.setattr(packing, "unpack", forbidden)
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    assert (weight.dtype, weight.shape, weight.device) == (torch.float32, (4, 6), torch.device("cpu"))
    assert (weight.ndim, weight.numel(), weight.size(1), weight.is_floating_point()) == (2, 24, 6, True)
    assert (weight.requires_grad, weight.is_leaf, weight.grad) == (False, True, None)
    assert repr(weight) == "LazyWeight(shape=(4, 6), dtype=torch.float32, device=cpu)"
    assert (bias.dtype, bias.shape) == (torch.float32, (4,))
    assert weight.detach().data.shape == (4, 6)


def test_values(layer: QuantLinear) -> None:
    expected = layer.canonical().dequantize()
    assert torch.equal(layer.dequantize(), expected)
    assert torch.equal(layer.weight, expected)
    assert torch.equal(layer.weight.clone(), expected)
    assert torch.equal(layer.weight.t() @ torch.eye(4), expected.t())
    assert torch.equal(layer.weight.detach()[1:3], expected[1:3])
    assert torch.equal(torch.stack([layer.weight, expected])[0], expected)
    np.testing.assert_array_equal(layer.weight.numpy(), expected.numpy())
    np.testing.assert_array_equal(np.asarray(layer.weight), expected.numpy())
    assert layer.weight.tolist() == expected.tolist()
    assert layer.weight.sum().item() == expected.sum().item()
    assert layer.bias is not None
    canonical_bias = layer.canonical().bias
    assert canonical_bias is not None
    assert torch.equal(layer.bias, canonical_bias)
    assert type(layer.weight + 0) is torch.Tensor


def test_conv2d_weight_has_the_logical_shape() -> None:
    conv = QuantConv2d.from_float(nn.Conv2d(4, 6, (3, 5), groups=2, bias=False), input_scale=0.1)
    assert conv.weight.shape == (6, 2, 3, 5)
    assert conv.bias is None
    assert torch.equal(conv.weight, conv.canonical().dequantize())


def test_copies_and_pickles_are_ordinary_tensors(layer: QuantLinear) -> None:
    expected = layer.dequantize()
    buffer = io.BytesIO()
    torch.save(layer.weight, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(layer.weight), pickle.loads(pickle.dumps(layer.weight)), torch.load(buffer)):
        assert type(copied) is torch.Tensor
        assert torch.equal(copied, expected)


def test_logical_dtype(layer: QuantLinear) -> None:
    expected = layer.dequantize()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight, expected.to(torch.bfloat16))
    assert "dtype=torch.bfloat16" in repr(layer)


def _assign(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


WRITES: dict[str, Callable[[QuantLinear], Any]] = {
    "weight.requires_grad": lambda layer: _assign(layer.weight, "requires_grad", True),
    "weight.requires_grad_": lambda layer: layer.weight.requires_grad_(),
    "bias.requires_grad_": lambda layer: layer.bias.requires_grad_(),
    "layer.requires_grad_": lambda layer: layer.requires_grad_(),
    "in place": lambda layer: layer.weight.mul_(2),
    "fill": lambda layer: nn.init.zeros_(layer.weight),
    "data": lambda layer: layer.weight.data.normal_(),
    "detach": lambda layer: layer.weight.detach().zero_(),
    "set data": lambda layer: _assign(layer.weight, "data", torch.zeros(4, 6)),
    "copy": lambda layer: layer.weight.copy_(torch.zeros(4, 6)),
    "out=": lambda layer: torch.add(torch.ones(4, 6), 1, out=layer.weight),
    "item": lambda layer: layer.weight.__setitem__(0, 1.0),
    "parameter": lambda layer: _assign(layer, "weight", nn.Parameter(torch.zeros(4, 6))),
    "tensor": lambda layer: _assign(layer, "bias", torch.zeros(4)),
}


@pytest.mark.parametrize("name", WRITES)
def test_training_and_writing_name_prepare(layer: QuantLinear, name: str) -> None:
    before = layer.packed.clone()
    with pytest.raises(
        RuntimeError, match=r"not trainable; train the float model, with fake quantization from fastcompress.prepare"
    ):
        WRITES[name](layer)
    assert torch.equal(layer.packed, before)


def test_switching_gradients_off_is_fine(layer: QuantLinear) -> None:
    assert layer.requires_grad_(False) is layer
    assert layer.weight.requires_grad_(False).requires_grad is False
    nn.Sequential(layer, nn.Linear(4, 2)).requires_grad_(True)  # a model's own call reaches parameters only


def test_parents_that_use_a_child_s_weight(layer: QuantLinear) -> None:
    """nn.MultiheadAttention hands out_proj.weight and out_proj.bias to functions, and never calls out_proj."""
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    quantized = copy.deepcopy(attention)
    projection = nn.Linear(8, 8)
    projection.load_state_dict(attention.out_proj.state_dict())
    quantized.out_proj = QuantLinear.from_float(projection, input_mode="dynamic")  # type: ignore[assignment]
    attention.out_proj.weight.data = quantized.out_proj.dequantize()  # type: ignore[operator]
    x = torch.randn(2, 5, 8)
    assert torch.equal(quantized(x, x, x)[0], attention(x, x, x)[0])
    with torch.no_grad():
        torch.testing.assert_close(quantized(x, x, x)[0], attention(x, x, x)[0])


def test_lazy_weight_is_what_its_reader_returns() -> None:
    lazy = LazyWeight(lambda: torch.ones(2, 3), (2, 3), torch.float32, torch.device("cpu"))
    assert torch.equal(lazy.materialize(), torch.ones(2, 3))
    assert torch.equal(lazy * 2, torch.full((2, 3), 2.0))
