"""What fake quantization rounds with: observers, learned scales, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn.mask import original_weight
from fastcompress.quantization import (
    QATConfig,
    choose_qparams,
    freeze_observers,
    set_fake_quant,
    weight_scales,
)
from tests.quantization.qat_models import OPTIMIZERS, conv_net, images, input_of, mlp, rows, train, weight_of


def test_ste_rounds_with_the_scales_of_quantize() -> None:
    model = mlp()
    weight = model[0].weight.detach().clone()
    prepared = fc.prepare(model, "W8A8", calibration_data=rows(), state="frozen").eval()
    scale = weight_scales(weight).numpy()[:, None]
    expected = np.clip(np.rint(weight.numpy() / scale), -127, 127).astype(np.float32) * scale
    assert np.array_equal(prepared[0].weight.detach().numpy(), expected)
    wanted, zero_point = choose_qparams(float(rows().min()), float(rows().max()))
    quantizer = input_of(prepared[0])
    assert (float(quantizer.scale), int(quantizer.zero_point)) == (wanted, zero_point)
    q = np.clip(np.rint(rows().numpy() * (np.float32(1) / np.float32(wanted))) + zero_point, 0, 255)
    assert np.array_equal(quantizer(rows()).numpy(), ((q - zero_point) * np.float32(wanted)).astype(np.float32))


def test_symmetric_activations() -> None:
    model = fc.prepare(mlp(), QATConfig(symmetric_activations=True), calibration_data=rows())
    peak = float(rows().abs().max())
    quantizer = input_of(model[0])
    assert (float(quantizer.scale), int(quantizer.zero_point)) == choose_qparams(-peak, peak, symmetric=True)


def test_the_moving_average() -> None:
    model = fc.prepare(nn.Linear(4, 4), QATConfig(observer_momentum=0.25), state="observe")
    batches = [torch.tensor([[0.0, 0, 0, 0]]), torch.tensor([[-1.0, 0, 2, 3]]), torch.tensor([[-3.0, 1, 1, 1]])]
    for batch in batches:
        model(batch)
    quantizer = input_of(model)
    # Zeros alone are no range; the first range is taken whole.
    assert (float(quantizer.low), float(quantizer.high)) == (-1.5, 2.5)
    model(torch.tensor([[torch.nan, 100.0, 0, 0]]))
    model(torch.tensor([[torch.inf, 100.0, 0, 0]]))
    model(torch.empty(0, 4))
    assert (float(quantizer.low), float(quantizer.high)) == (-1.5, 2.5)
    model.eval()
    model(torch.full((1, 4), 100.0))
    assert (float(quantizer.low), float(quantizer.high)) == (-1.5, 2.5)


def test_calibration_takes_the_mean_of_the_ranges() -> None:
    batches = [torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 1.0]]), torch.tensor([[-2.0, 6.0]])]
    quantizer = input_of(fc.prepare(nn.Linear(2, 2), calibration_data=batches))
    torch.testing.assert_close((quantizer.low, quantizer.high), (torch.tensor(-2.0), torch.tensor(3.0)))


@pytest.mark.parametrize("pattern", [None, "4x4"])
def test_learned_scales_start_where_the_paper_says(pattern: str | None) -> None:
    model = mlp() if pattern is None else fc.prune(mlp(), 0.75, pattern)
    weight = model[0].weight.detach().clone()
    prepared = fc.prepare(model, QATConfig(method="lsq"))
    means = [row[row != 0].abs().mean() for row in weight if bool(row.any())]
    assert len(means) == (8 if pattern else 16)
    overall = torch.stack(means).mean()  # for channels without a weight
    mean = torch.stack([row[row != 0].abs().mean() if bool(row.any()) else overall for row in weight])
    torch.testing.assert_close(weight_of(prepared[0]).learned_scale(), 2 * mean / 127**0.5)
    quantizer = input_of(prepared[0])
    assert not quantizer.known
    prepared(rows())
    low, high = float(rows().min()), float(rows().max())
    zero_point = choose_qparams(low, high)[1]
    expected = 2 * rows().abs().mean() / max(zero_point, 255 - zero_point) ** 0.5
    assert int(quantizer.zero_point) == zero_point
    torch.testing.assert_close(quantizer.learned_scale(), expected)
    prepared(10 * rows())
    torch.testing.assert_close(quantizer.learned_scale(), expected)
    assert int(quantizer.zero_point) == zero_point


def test_learned_scales_that_clip_nothing() -> None:
    prepared = fc.prepare(mlp(), QATConfig(method="lsq", step_init="minmax"), calibration_data=rows())
    assert torch.equal(weight_of(prepared[0]).learned_scale(), weight_scales(mlp()[0].weight))
    assert input_of(prepared[0]).learned_scale().item() == choose_qparams(float(rows().min()), float(rows().max()))[0]


def test_learned_scales_learn_and_freeze() -> None:
    model = fc.prepare(conv_net(), QATConfig(method="lsq"), calibration_data=images())
    optimizer = OPTIMIZERS["adamw"](model)
    layer = model[3]
    start = weight_of(layer).learned_scale(), input_of(layer).learned_scale()
    train(model, optimizer)
    learned = weight_of(layer).learned_scale(), input_of(layer).learned_scale()
    assert all(bool((a != b).all()) for a, b in zip(start, learned, strict=True))
    freeze_observers(model)
    train(model, optimizer)  # weight decay and momentum move the parameter, but not what is in use
    assert torch.equal(weight_of(layer).scale, learned[0])
    assert torch.equal(input_of(layer).qparams()[0], learned[1])
    set_fake_quant(model, "train")
    assert torch.equal(weight_of(layer).learned_scale(), learned[0])


def test_the_gradient_of_a_learned_scale_is_scaled() -> None:
    model = fc.prepare(
        nn.Linear(8, 4, bias=False), QATConfig(method="lsq", step_init="minmax"), calibration_data=rows()
    )
    x = rows()
    model(x).sum().backward()
    quantizer, inputs = weight_of(model), input_of(model)
    rounded_x = inputs(x).detach().double()
    w, scale = original_weight(model).detach(), quantizer.learned_scale()
    v = w / scale[:, None]
    slope = (torch.round(v) - v).double()
    expected = (rounded_x.sum(dim=0) * slope).sum(dim=1) / (8 * 127) ** 0.5 / scale
    torch.testing.assert_close(quantizer.step.grad.double(), expected, rtol=1e-4, atol=1e-6)
    zero_point = int(inputs.zero_point)
    u = x * (1 / inputs.learned_scale())
    slope = torch.where((torch.round(u) + zero_point - 127.5).abs() <= 127.5, torch.round(u) - u, torch.nan).double()
    slope = torch.where(slope.isnan(), torch.where(u > 0, 255.0 - zero_point, 0.0 - zero_point), slope)
    expected = (model.weight.detach().double().sum(dim=0) * slope).sum() / (
        8 * max(zero_point, 255 - zero_point)
    ) ** 0.5
    torch.testing.assert_close(inputs.step.grad.double(), expected / inputs.learned_scale(), rtol=1e-4, atol=1e-6)


def test_sgd_moves_a_learned_scale_as_in_the_paper_and_adam_by_the_learning_rate() -> None:
    def after(optimizer: Any, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        model = fc.prepare(nn.Linear(8, 4), QATConfig(method="lsq"), calibration_data=rows())
        quantizer = weight_of(model)
        before = quantizer.learned_scale()
        model(rows()).square().sum().backward()
        gradient = quantizer.step.grad * before  # the paper's
        optimizer(model.parameters(), lr=lr).step()
        return before, gradient, quantizer.learned_scale()

    before, gradient, now = after(torch.optim.SGD, 1e-3)
    torch.testing.assert_close(now, before - 1e-3 * gradient)
    assert bool((now != before).all())
    before, _, now = after(torch.optim.Adam, 0.01)
    torch.testing.assert_close((now / before - 1).abs(), torch.full((4,), 0.01), rtol=1e-3, atol=0.0)


def test_an_optimizer_that_oversteps_does_not_end_in_zero() -> None:
    model = fc.prepare(nn.Linear(8, 4), QATConfig(method="lsq"), calibration_data=rows())
    quantizer = weight_of(model)
    unit = quantizer.learned_scale()
    with torch.no_grad():
        quantizer.step.fill_(-3.0)
    assert torch.equal(quantizer.learned_scale(), unit * 2.0**-10)
    model(rows()).sum().backward()
    assert float(quantizer.step.grad.abs().min()) > 0.0


def test_learned_scales_that_start_in_zeros() -> None:
    layer = nn.Linear(8, 4)
    nn.init.zeros_(layer.weight)
    model = fc.prepare(layer, QATConfig(method="lsq"))
    model(torch.zeros(2, 8))
    inputs = input_of(model)
    assert weight_of(model).learned_scale().tolist() == pytest.approx([1 / 127] * 4)
    assert float(inputs.learned_scale()) == pytest.approx(1 / 127)
    assert int(inputs.zero_point) == 128


def test_scales_stay_in_float32() -> None:
    model = fc.prepare(mlp(), QATConfig(method="lsq"), calibration_data=rows())
    before = {key: value.clone() for key, value in model.state_dict().items() if "scale" in key or "step" in key}
    model.bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    out = model(rows().bfloat16())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert original_weight(model[0]).grad.dtype == torch.bfloat16


def test_keyword_inputs_and_nan() -> None:
    model = fc.prepare(nn.Linear(8, 4), calibration_data=rows())
    assert torch.equal(model(input=rows()), model(rows()))
    broken = rows()
    broken[0, 0] = torch.nan
    assert bool(model(broken)[0].isnan().all())  # a loss shows it
    assert bool(torch.isfinite(model.eval()(broken)).all())  # as the kernels do
