"""`convert` after four-bit training: the same integers and scales, outputs within bounds, and what is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import GroupQuantLinear, QuantConv2d
from fastcompress.nn.mask import original_weight
from fastcompress.pruning import mask_of
from fastcompress.quantization import QATConfig, fake_quantized, set_fake_quant
from fastcompress.record import record_of
from tests.quantization.qat_convert_cases import stopwatch
from tests.quantization.qat_group_cases import (
    SCHEMES,
    codes_of,
    group_net,
    groups_of,
    prepared,
    rounded_rows,
    steps,
    stored,
    tokens,
)
from tests.quantization.qat_models import METHODS, conv_net, images
from tests.tolerances import SIXTEEN_BITS, added_bound, folded_bound, group_bound


def scales_in_use(layer: nn.Module, dtype: str = "bfloat16") -> Any:
    """What training rounds with now, from the parameters and buffers alone; None where scales follow the weights."""
    quantizer = groups_of(layer)
    if quantizer.mode == "frozen":
        return quantizer.scale.numpy()
    return None if quantizer.step is None else stored((quantizer.step * quantizer.unit).detach().numpy(), dtype)


@pytest.mark.parametrize("state", ["train", "frozen"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_integers_and_scales(scheme: str, method: str, state: str) -> None:
    model = prepared(scheme, method, state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    q = fc.convert(model, only_if_faster=False)
    for index in (0, 2):
        layer = q[index]
        assert type(layer) is GroupQuantLinear
        c = layer.canonical()
        expected, scale, real = codes_of(original_weight(model[index]), 16, scale=scales_in_use(model[index]))
        assert np.array_equal(c.values().numpy().astype(int) - 8, expected)
        assert c.weight_scale.dtype == torch.bfloat16
        assert np.array_equal(c.weight_scale.float().numpy(), scale)
        assert torch.equal(c.dequantize(), model[index].weight)
        assert np.array_equal(model[index].weight.detach().numpy(), real)
        assert torch.equal(c.bias, model[index].bias)
        assert c.input_mode == ("dynamic_symmetric" if scheme == "W4A8" else "dynamic_16bit")
        assert (c.group_size, c.weight_zero_point, c.weight_min) == (16, None, None)
    assert not fake_quantized(q)
    record = record_of(q)
    assert record is not None
    assert record.scheme == scheme
    assert "with the scales it was trained with" in record["0"].reason
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
def test_outputs_from_equal_inputs(scheme: str, method: str) -> None:
    """The simulation and the layer, each against float64 on the same integers and inputs."""
    model = prepared(scheme, method)
    q = fc.convert(model, only_if_faster=False)
    x = tokens(5) * torch.logspace(-2, 2, 24)[:, None]
    with torch.no_grad():
        simulated, executed = model[0](x).double().numpy(), q[0](x).double().numpy()
    w = model[0].weight.detach().double().numpy()
    a = (rounded_rows(x) if scheme == "W4A8" else x.numpy()).astype(np.float64)
    bias = model[0].bias.detach().double().numpy()
    expected = a @ w.T + bias
    bound = folded_bound(w.shape[1], np.abs(a) @ np.abs(w).T, np.abs(bias), expected)
    assert (np.abs(simulated - expected) <= bound).all()
    size = np.zeros_like(expected)
    for start in range(0, w.shape[1], 16):
        part = slice(start, start + 16)
        size += np.abs(a[:, part]).max(axis=1, keepdims=True) * np.abs(w[:, part]).sum(axis=1)
    # A rounded input of W4A8 is a float32 product here, and exact in the layer: u of each. Those of W4A16 are rounded.
    inputs = size * (2.0**-24 if scheme == "W4A8" else SIXTEEN_BITS)
    assert (np.abs(executed - expected) <= added_bound(inputs + group_bound(3, size), expected)).all()


def test_broken_rows_are_nan_in_both() -> None:
    model = prepared("W4A8", "ste").eval()
    q = fc.convert(model, only_if_faster=False)
    x = tokens()
    x[1, 0], x[2, 5] = torch.nan, torch.inf
    for found in (model[0](x), q[0](x)):
        assert found.isnan().all(dim=1).nonzero().flatten().tolist() == [1, 2]
        assert found.isnan().any(dim=1).sum() == 2


@pytest.mark.parametrize("state", ["off", "observe", "train", "frozen"])
def test_the_state_does_not_matter_to_learned_scales(state: str) -> None:
    expected = fc.convert(prepared("W4A16", "lsq"))
    model = prepared("W4A16", "lsq")
    set_fake_quant(model, state)
    assert torch.equal(fc.convert(model)(tokens()), expected(tokens()))


@pytest.mark.parametrize("method", METHODS)
def test_masked_weights_stay_zero(method: str) -> None:
    model = prepared("W4A8", method, "frozen", fc.prune(group_net(), 0.5, "4x4"))
    q = fc.convert(model, only_if_faster=False)
    for index in (0, 2):
        gone = ~mask_of(model[index])
        assert 0.4 < gone.float().mean() < 0.6
        assert bool((original_weight(model[index])[gone] != 0).any())
        assert bool((q[index].canonical().values()[gone] == 8).all())
        assert torch.equal(q[index].canonical().dequantize(), model[index].weight)


@pytest.mark.parametrize("method", METHODS)
def test_a_norm_behind_the_layer_is_folded(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-1.5, 1.5, 16))
        net[1].weight[5] = 0.0
    model = fc.prepare(net, QATConfig("W4A16", method, group_size=16), tokens())
    steps(model, torch.optim.Adam(model.parameters(), lr=1e-2))
    factor = model[1].weight.double() * (1 / (model[1].running_var.double() + model[1].eps).sqrt())
    folded = original_weight(model[0]).detach() * factor.detach().float()[:, None]
    q = fc.convert(model.eval(), example_inputs=tokens())
    assert [type(m) for m in q] == [GroupQuantLinear, nn.Identity, nn.Identity, GroupQuantLinear]
    assert q[0].activation == "relu"
    expected = codes_of(folded, 16, scale=scales_in_use(model[0]))
    assert np.array_equal(q[0].canonical().values().numpy().astype(int) - 8, expected[0])
    alive = (model[1].weight != 0).numpy()
    assert alive.sum() == 15  # behind a factor of 0 there are only zeros, of whatever scale
    assert np.array_equal(q[0].canonical().weight_scale.float().numpy()[alive], expected[1][alive])


def test_w4a8_obeys_only_if_faster() -> None:
    model = prepared("W4A8", "ste").eval()
    slow: Callable[..., dict[str, float]] = lambda calls: {n: 1.0 if n == "dense" else 2.0 for n in calls}  # noqa: E731
    q = fc.convert(model, example_inputs=tokens(), timer=slow)
    assert [type(m) for m in q] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(q[0].weight, original_weight(model[0]))
    assert not q[0]._forward_pre_hooks
    assert list(q.state_dict()) == list(group_net().state_dict())
    record = record_of(q)
    assert record is not None
    assert record["0"].reason == (
        "four-bit measured 0.50× as fast as dense here, dense is kept; it lost its fake quantization and stays float"
    )
    fast: Callable[..., dict[str, float]] = lambda calls: {n: 2.0 if n == "dense" else 1.0 for n in calls}  # noqa: E731
    q = fc.convert(model, example_inputs=tokens(), timer=fast)
    assert [type(m) for m in q] == [GroupQuantLinear, nn.Identity, GroupQuantLinear]


def test_w4a16_always_replaces_and_is_not_measured() -> None:
    def timer(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        raise AssertionError(f"measured {list(calls)}")

    q = fc.convert(prepared("W4A16", "ste"), timer=timer)
    assert type(q[0]) is GroupQuantLinear
    record = record_of(q)
    assert record is not None
    assert record["0"].reason == "for its size, not measured; with the scales it was trained with"


def test_schemes_side_by_side() -> None:
    model = fc.prepare(conv_net(), "W8A8", images(), targets=nn.Conv2d)
    model = fc.prepare(model, QATConfig("W4A16", group_size=16), images(), targets="6")
    model(images())
    linear, conv = model[6].weight.detach().clone(), model[3].weight.detach().clone()
    set_fake_quant(model, "frozen")
    q = fc.convert(model, example_inputs=images(), timer=stopwatch(dense=2.0, int8=1.0))
    assert [type(q[i]) for i in (0, 3, 6)] == [QuantConv2d, QuantConv2d, GroupQuantLinear]
    assert torch.equal(q[6].canonical().dequantize(), linear)
    assert torch.equal(q[3].dequantize(), conv)
    record = record_of(q)
    assert record is not None
    assert record.scheme == "W8A8 + W4A16"
    assert [decision.name for decision in record] == ["0", "1", "2", "3", "4", "6"]


def test_bfloat16_models_keep_the_integers() -> None:
    model = prepared("W4A8", "lsq", "frozen").bfloat16().eval()
    q = fc.convert(model, only_if_faster=False)
    expected = codes_of(original_weight(model[0]), 16, scale=groups_of(model[0]).scale.numpy())
    assert np.array_equal(q[0].canonical().values().numpy().astype(int) - 8, expected[0])
    assert q[0].weight.dtype == torch.bfloat16
    assert q(tokens().bfloat16()).dtype == torch.bfloat16


def test_save_and_load(tmp_path: Path) -> None:
    q = fc.convert(prepared("W4A16", "lsq"))
    fc.save(q, tmp_path / "out")
    assert torch.equal(fc.load(tmp_path / "out", model=group_net())(tokens()), q(tokens()))


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
def test_training_recovers_what_rounding_costs(scheme: str, method: str) -> None:
    """One scale a row, and rows with some large weights (of small inputs): rounding alone loses much accuracy."""
    (x, y), (x_test, y_test) = digits()

    def fit(model: nn.Module, lr: float, count: int) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr)
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x_test).argmax(1) == y_test).float().mean())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(model, 1e-2, 200)
    with torch.no_grad():
        model[0].weight[:, ::9] *= 8
    for inputs in (x, x_test):
        inputs[:, ::9] /= 8
    dense = accuracy(model)
    rounded = accuracy(fc.quantize(model, scheme, group_size=-1, only_if_faster=False))
    trained = fc.prepare(model, QATConfig(scheme, method, group_size=-1))
    fit(trained, 3e-3, 100)
    found = accuracy(fc.convert(trained, only_if_faster=False))
    assert dense - rounded > 0.04
    assert found > (dense + rounded) / 2  # more than half of it is back


def recipe_run(stage: fc.recipes.QAT, **options: Any) -> Any:
    return fc.compress(
        group_net(),
        [stage],
        train_data=[(tokens(i), torch.arange(24) % 8) for i in range(4)],
        epochs=2,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        **options,
    )


def test_a_recipe_with_four_bits(tmp_path: Path) -> None:
    stage = fc.recipes.QAT("W4A16", start=0.5, freeze_at=1.5, group_size=8, scale_dtype="float32")
    assert stage.config == QATConfig("W4A16", group_size=8, scale_dtype="float32")
    result = recipe_run(stage)
    layer = result.model[0]
    assert type(layer) is GroupQuantLinear
    assert (layer.group_size, layer.canonical().weight_scale.dtype) == (8, torch.float32)
    assert torch.equal(layer.canonical().dequantize(), result.trained[0].weight)
    file = tmp_path / "recipe.yaml"
    file.write_text("epochs: 2\nstages:\n  - qat: {scheme: W4A16, group_size: 8, scale_dtype: float32, start: 0.5}\n")
    (read,) = fc.recipes.load_recipe(file).stages
    assert read == fc.recipes.QAT("W4A16", start=0.5, group_size=8, scale_dtype="float32")


def test_a_budget_gives_four_bits_back() -> None:
    def rounding_layers(model: nn.Module) -> float:
        found = [m for m in model.modules() if isinstance(m, GroupQuantLinear)]
        return -float(len(found) + sum(groups_of(m).mode != "off" for m in fake_quantized(model).values()))

    result = recipe_run(fc.recipes.QAT("W4A16", group_size=8), eval_fn=rounding_layers, max_drop=0.5)
    assert {(g.layer, g.what, g.before, g.after) for g in result.given_up} == {
        ("0", "int4", "int4", "float"),
        ("2", "int4", "int4", "float"),
    }
    assert [type(m) for m in result.model] == [nn.Linear, nn.ReLU, nn.Linear]
