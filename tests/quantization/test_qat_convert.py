"""`convert` after quantization-aware training: the same integers, scales and zero points, and outputs within bounds."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, QuantLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.nn.mask import original_weight
from fastcompress.pruning import mask_of, masked
from fastcompress.quantization import (
    fake_quantized,
    set_fake_quant,
)
from fastcompress.record import record_of
from tests.quantization.qat_convert_cases import (
    METHODS,
    STATES,
    assert_bit_equal,
    converted,
    held,
    integers,
    trained,
)
from tests.quantization.qat_models import conv_net, images
from tests.tolerances import folded_bound


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_integers_scales_and_zero_points(method: str, state: str) -> None:
    model = trained(conv_net(), method, state)
    before = copy.deepcopy(model.state_dict())
    q = converted(model)
    assert [type(m) for m in q] == [
        QuantConv2d,
        nn.Identity,
        nn.Identity,
        QuantConv2d,
        nn.Identity,
        nn.Flatten,
        QuantLinear,
    ]
    assert [q[i].activation for i in (0, 3, 6)] == ["relu", "relu", "none"]
    for index, norm in ((0, model[1]), (3, None), (6, None)):
        assert_bit_equal(model[index], norm, q[index])
    assert torch.equal(q[6].dequantize(), model[6].weight.detach())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_negative_and_zero_gammas() -> None:
    model = trained(conv_net(), "ste", "train", "momentum")
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, -1.0, 1e-35, -0.5] * 4))
    q = converted(model)
    assert_bit_equal(model[0], model[1], q[0])
    own = original_weight(model[0]).detach().numpy()
    assert (held(q[0])[0][0::4] == 0).all()
    assert (held(q[0])[0][2::4] == 0).all()
    signs = np.sign(held(q[0])[0][1::4]) * np.sign(own[1::4])
    assert set(np.unique(signs)) <= {-1.0, 0.0}
    model.eval()
    with torch.no_grad():
        expected = F.relu(model[1].bias)
        simulated, executed = model[2](model[1](model[0](images()))), q[0](images())
    for channel in (0, 4, 8, 12):
        assert bool((simulated[:, channel] == expected[channel]).all())
        assert bool((executed[:, channel] == expected[channel]).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", STATES)
def test_outputs_from_equal_inputs(method: str, state: str) -> None:
    """Both the simulation and the int8 layer against float64 on the same integers."""
    model = trained(conv_net(), method, state)
    q = converted(model)
    model.train(state == "frozen")  # frozen, training mode computes the same
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def remember(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.setdefault(index, args[0].detach())
            outputs[index] = output.detach()

        return hook

    hooks = [model[i].register_forward_hook(remember(i)) for i in (0, 1, 3, 6)]
    with torch.no_grad():
        model(images())
    for hook in hooks:
        hook.remove()
    model.eval()
    for index, end, norm in ((0, 1, model[1]), (3, 3, None), (6, 6, None)):
        layer, int8 = model[index], q[index]
        weight, scale = integers(layer, norm)
        real = torch.from_numpy(weight * scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1)))
        x = inputs[index].double()  # what the hook sees is the input after its fake quantization
        factor, mean, beta = (torch.ones(16), torch.zeros(16), torch.zeros(16))
        if norm is not None:
            factor = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach()
            mean, beta = norm.running_mean.double(), norm.bias.detach().double()
        bias = layer.bias.detach().double()
        shape = (-1, 1, 1) if weight.ndim == 4 else (-1,)

        def product(a: Tensor, b: Tensor, layer: nn.Module = layer) -> Tensor:
            if isinstance(layer, nn.Conv2d):
                return F.conv2d(a, b, None, layer.stride, layer.padding)
            return F.linear(a, b)

        expected = product(x, real) + ((bias - mean) * factor + beta).reshape(shape)
        added = ((bias.abs() + mean.abs()) * factor.abs() + beta.abs()).reshape(shape)
        terms = weight[0].size
        bound = folded_bound(terms, product(x.abs(), real.abs()).numpy(), added.numpy(), expected.numpy())
        assert (np.abs(outputs[end].double().numpy() - expected.numpy()) <= bound).all()
        plain = F.relu(expected).numpy() if int8.activation == "relu" else expected.numpy()
        with torch.no_grad():
            executed = int8(inputs[index]).double().numpy()
        assert (np.abs(executed - plain) <= bound).all()


@pytest.mark.parametrize("method", METHODS)
def test_masked_layers_become_block_sparse_int8(method: str) -> None:
    model = trained(fc.prune(conv_net(), 0.75, "16x4"), method, "frozen")
    q = converted(model)
    assert [type(q[i]) for i in (0, 3, 6)] == [SparseQuantConv2d, SparseQuantConv2d, SparseQuantLinear]
    for index, norm in ((0, model[1]), (3, None), (6, None)):
        assert q[index].block_size == (16, 4)
        assert q[index].density <= 0.3
        assert_bit_equal(model[index], norm, q[index])
        assert not held(q[index])[0][~mask_of(model[index]).numpy()].any()
    assert not masked(q)
    assert not fake_quantized(q)
    record = record_of(q)
    assert record is not None
    assert record.scheme == "W8A8"
    assert record["3"].kernel.startswith("conv2d_w8a8_bsr16x4_")
    assert "with the scales it was trained with" in record["3"].reason
    assert record["1"].action == record["2"].action == "fused"


@pytest.mark.parametrize("state", ["off", "observe", "train", "frozen"])
@pytest.mark.parametrize("method", METHODS)
def test_the_state_does_not_matter(method: str, state: str) -> None:
    model = trained(conv_net(), method, "frozen")
    set_fake_quant(model, state)
    q, expected = converted(model), converted(trained(conv_net(), method, "frozen"))
    for index in (3, 6):
        assert q[index].input_scale == expected[index].input_scale
        if method == "lsq":
            assert np.array_equal(held(q[index])[0], held(expected[index])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_formats_keep_the_integers(dtype: torch.dtype) -> None:
    model = trained(conv_net(), "ste", "frozen").to(dtype).eval()
    weight = model[0].weight.detach().float()
    q = fc.convert(model, example_inputs=images().to(dtype), only_if_faster=False)
    assert q[0].weight.dtype == dtype
    norm = copy.deepcopy(model[1]).float()
    reference = copy.deepcopy(model[0]).float()
    assert_bit_equal(reference, norm, q[0])
    assert bool(torch.isfinite(weight).all())
    assert q(images().to(dtype)).dtype == dtype
