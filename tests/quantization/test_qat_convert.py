"""`convert` after quantization-aware training: the same integers, scales and zero points, and outputs within bounds."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, QuantLinear, SparseLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.nn.mask import original_weight
from fastcompress.pruning import mask_of, masked
from fastcompress.quantization import (
    QATConfig,
    fake_quantized,
    freeze_batchnorm,
    freeze_observers,
    set_fake_quant,
)
from fastcompress.record import record_of
from tests.quantization.qat_models import OPTIMIZERS, conv_net, images, input_of, mlp, train, weight_of
from tests.tolerances import folded_bound

METHODS = ["ste", "lsq"]
#: In training mode with everything learning; and after freezing.
STATES = ["train", "frozen"]

Array = NDArray[np.float64]


def stopwatch(**seconds: float) -> Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]:
    """Says what the test wants; ``sparse_int8`` stands for "sparse int8"."""
    known = {name.replace("_", " "): value for name, value in seconds.items()}
    return lambda calls: {name: known[name] for name in calls}


def trained(model: nn.Module, method: str, state: str, optimizer: str = "adam") -> nn.Module:
    prepared = fc.prepare(model, QATConfig(method=method), images(), state="off")
    made = OPTIMIZERS[optimizer](prepared)
    set_fake_quant(prepared, "train")
    train(prepared, made)
    if state == "frozen":
        freeze_batchnorm(prepared)
        freeze_observers(prepared)
        train(prepared, made, start=5)
    return prepared


def converted(model: nn.Module) -> Any:
    return fc.convert(model, example_inputs=images(), only_if_faster=False)


def integers(layer: nn.Module, norm: nn.Module | None = None) -> tuple[Array, Array]:
    """s8 weight and scale that the fake quantization on a layer stands for, by the formulas of architecture §1."""
    weight = original_weight(layer).detach().numpy().astype(np.float32)
    mask = mask_of(layer)
    if mask is not None:
        weight = np.where(mask.numpy(), weight, np.float32(0))
    wide = (-1, *[1] * (weight.ndim - 1))
    gone = np.zeros(len(weight), bool)
    if norm is not None:
        gamma, variance = norm.weight.detach().double().numpy(), norm.running_var.double().numpy()
        factor = (gamma * (1 / np.sqrt(variance + norm.eps))).astype(np.float32)
        gone = np.abs(factor) < 2.0**-100
        weight = weight * np.where(gone, np.float32(1), factor).reshape(wide)
    quantizer = weight_of(layer)
    if quantizer.mode == "frozen":
        scale = quantizer.scale.numpy()
    elif quantizer.step is not None:
        scale = quantizer.step.detach().numpy() * quantizer.unit.numpy()
    else:
        scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1), np.float32(2.0**-100)) / np.float32(127)
    weight = np.where(gone.reshape(wide), np.float32(0), weight)
    return np.clip(np.rint(weight / scale.reshape(wide)), -127, 127), scale


def held(layer: Any) -> tuple[Array, Array]:
    """s8 weight and scale inside an int8 layer, dense or block-sparse."""
    c = layer.canonical()
    wide = (-1, *[1] * (len(c.weight_shape) - 1))
    return np.rint(layer.dequantize().float().numpy() / c.weight_scale.numpy().reshape(wide)), c.weight_scale.numpy()


def assert_bit_equal(before: nn.Module, norm: nn.Module | None, after: Any) -> None:
    for found, expected in zip(held(after), integers(before, norm), strict=True):
        assert np.array_equal(found, expected)
    scale, zero_point = input_of(before).qparams()
    assert (after.input_scale, after.input_zero_point) == (float(scale), int(zero_point))
    assert after.input_mode == "static"


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


def test_without_example_inputs_the_norm_is_folded_all_the_same() -> None:
    model = trained(conv_net(), "ste", "frozen")
    q = fc.convert(model, timer=stopwatch(dense=2.0, int8=1.0))
    assert [type(m) for m in q[:3]] == [QuantConv2d, nn.Identity, nn.ReLU]
    assert_bit_equal(model[0], model[1], q[0])
    record = record_of(q)
    assert record is not None
    assert "example_inputs would allow a measurement" in record["0"].reason
    assert record["6"].speedup == 2.0


def test_a_norm_that_training_did_not_fold_stays() -> None:
    model = fc.prepare(conv_net(), QATConfig(fold_batchnorm=False), calibration_data=images())
    q = converted(model)
    assert [type(m) for m in q[:3]] == [QuantConv2d, nn.BatchNorm2d, nn.ReLU]
    assert_bit_equal(model[0], None, q[0])
    assert torch.equal(q[0].dequantize(), model[0].weight.detach())


def test_layers_that_do_not_pay_stay_float() -> None:
    model = trained(conv_net(), "lsq", "frozen").eval()
    q = fc.convert(model, example_inputs=images(), timer=stopwatch(dense=1.0, int8=2.0))
    assert [type(m) for m in q] == [type(m) for m in conv_net()]
    assert list(q.state_dict()) == list(conv_net().state_dict())
    assert not fake_quantized(q)
    assert not q[0]._forward_pre_hooks
    for index in (0, 3, 6):
        assert torch.equal(q[index].weight, original_weight(model[index]))
    record = record_of(q)
    assert record is not None
    assert record.counts() == {"kept": 3}
    assert record["3"].reason == (
        "int8 measured 0.50× as fast as dense here, dense is kept; it lost its fake quantization and stays float"
    )
    set_fake_quant(model, "off")
    with torch.no_grad():
        assert torch.equal(q(images()), model(images()))


def test_masked_layers_that_do_not_pay_in_int8_are_masked_layers() -> None:
    model = fc.prepare(fc.prune(mlp(), 0.75, "4x1", ignore="2"), calibration_data=torch.randn(8, 8))
    timer = stopwatch(dense=2.0, int8=3.0, sparse_int8=4.0, sparse=1.0)
    q = fc.convert(model, timer=timer)
    assert [type(m) for m in q] == [SparseLinear, nn.ReLU, nn.Linear]
    record = record_of(q)
    assert record is not None
    assert record.scheme == "W8A8 + sparse"
    assert "lost its fake quantization and stays float; sparse measured 2.00×" in record["0"].reason
    assert [decision.name for decision in record] == ["0", "2"]


def test_targets_leave_the_others_prepared() -> None:
    model = trained(conv_net(), "ste", "frozen")
    q = fc.convert(model, example_inputs=images(), only_if_faster=False, ignore="6")
    assert list(fake_quantized(q)) == ["6"]
    assert type(q[3]) is QuantConv2d
    record = record_of(q)
    assert record is not None
    assert record["6"].reason == "ignored by '6'; it keeps its fake quantization"
    rest = fc.convert(q, only_if_faster=False)
    assert type(rest[6]) is QuantLinear
    assert torch.equal(rest(images()), converted(model)(images()))


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


def test_save_and_load(tmp_path: Path) -> None:
    q = converted(trained(fc.prune(conv_net(), 0.75, "16x4"), "lsq", "frozen")).eval()
    fc.save(q, tmp_path / "out")
    assert torch.equal(fc.load(tmp_path / "out", model=conv_net().eval())(images()), q(images()))


def test_a_single_layer() -> None:
    layer = fc.prepare(nn.Linear(8, 4), calibration_data=torch.randn(8, 8))
    q = fc.convert(layer, only_if_faster=False)
    assert type(q) is QuantLinear
    assert_bit_equal(layer, None, q)
    with pytest.raises(ValueError, match=r"convert: inplace=True cannot turn a ParametrizedLinear|Linear into another"):
        fc.convert(layer, only_if_faster=False, inplace=True)
    assert list(fake_quantized(layer)) == [""]
    assert bool(torch.isfinite(layer(torch.randn(2, 8))).all())


class Padded(nn.Conv2d):
    """A convolution with a forward of its own; "same" in its class's name is what the adapters look for."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class PaddedSame(Padded):
    static_padding = nn.ZeroPad2d(1)


def test_subclasses_with_an_adapter() -> None:
    model = nn.Sequential(PaddedSame(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    prepared = fc.prepare(model, calibration_data=images())
    q = converted(prepared)
    assert [type(q[i]) for i in (0, 2)] == [QuantConv2d, QuantConv2d]
    assert q[0].padding4 == (1, 1, 1, 1)
    assert_bit_equal(prepared[0], None, q[0])


def test_a_subclass_without_an_adapter_is_not_prepared(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastcompress"):
        prepared = fc.prepare(nn.Sequential(Padded(4, 16, 3), nn.Conv2d(16, 4, 3)), "W8A8", images())
    assert list(fake_quantized(prepared)) == ["1"]
    assert "Padded has a forward of its own and no adapter" in caplog.text


def test_what_was_never_seen_is_not_converted(caplog: pytest.LogCaptureFixture) -> None:
    model = fc.prepare(mlp())
    with pytest.raises(
        ValueError, match=r"none of the layers .* of '0', its inputs were never seen in training; train"
    ):
        fc.convert(model, inplace=True)
    assert list(fake_quantized(model)) == ["0", "2"]
    model[0](torch.randn(4, 8))
    with caplog.at_level(logging.WARNING, "fastcompress"):
        q = fc.convert(model, only_if_faster=False)
    assert [type(m) for m in q] == [QuantLinear, nn.ReLU, nn.Linear]
    assert "convert: 1 layers stay float:\n  2 (Linear): its inputs were never seen in training" in caplog.text
    zeros = fc.prepare(mlp(), calibration_data=torch.zeros(4, 8))
    assert type(fc.convert(zeros, only_if_faster=False)[0]) is nn.Linear


def unchanged(model: nn.Module, before: dict[str, Any]) -> bool:
    return before == {name: (id(m), type(m), len(m._forward_pre_hooks)) for name, m in model.named_modules()}


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = trained(fc.prune(conv_net(), 0.75, "16x4"), "ste", "frozen").eval()
    before = {name: (id(m), type(m), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    expected = model(images())

    def broken(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        raise RuntimeError("the clock stopped")

    with pytest.raises(RuntimeError, match="the clock stopped"):
        fc.convert(model, example_inputs=images(), timer=broken, inplace=True)
    assert unchanged(model, before)
    assert torch.equal(model(images()), expected)
    runs: list[int] = []

    def fails_later(module: nn.Module, batch: Tensor) -> Tensor:
        runs.append(0)
        if len(runs) == 2:
            raise RuntimeError("no second run")
        return module(batch)

    with pytest.raises(RuntimeError, match="no second run"):
        fc.convert(model, example_inputs=images(), only_if_faster=False, forward_fn=fails_later, inplace=True)
    assert unchanged(model, before)
    assert torch.equal(model(images()), expected)
    converted_ = fc.convert(model, example_inputs=images(), only_if_faster=False, inplace=True)
    assert converted_ is model
    assert type(model[0]) is SparseQuantConv2d


def test_a_norm_that_was_replaced_or_is_used_elsewhere() -> None:
    model = trained(conv_net(), "ste", "frozen")
    norm = model[1]
    model[1] = nn.BatchNorm2d(16)
    with pytest.raises(
        ValueError, match=r"convert: layer '0' was trained with the BatchNorm2d behind it folded in, wh"
    ):
        converted(model)
    model[1] = norm
    hook = norm.register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match=r"which has hooks now"):
        converted(model)
    hook.remove()

    def peeking(module: nn.Module, batch: Tensor) -> Tensor:
        y = module[0](batch)
        return module[2:](module[1](y) + y)

    with pytest.raises(ValueError, match=r"but something else uses the output of one of the two now"):
        fc.convert(model, example_inputs=images(), forward_fn=peeking, only_if_faster=False)
    assert type(converted(model)[0]) is QuantConv2d
