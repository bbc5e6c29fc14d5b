"""Training with fake quantization: folded norms, masks, resuming, copying, compiling."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn.mask import Mask, original_weight
from fastcompress.pruning import apply_mask, mask_of, masked, remove_mask
from fastcompress.quantization import (
    QATConfig,
    fake_quantized,
    freeze_batchnorm,
    freeze_observers,
    set_fake_quant,
    weight_scales,
)
from tests.quantization.qat_models import METHODS, OPTIMIZERS, conv_net, images, mlp, rows, train, weight_of


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_a_norm_is_folded_into_what_is_rounded() -> None:
    model = fc.prepare(conv_net(), "W8A8", images())
    conv, norm = model[0], model[1]
    assert [weight_of(model[i]).norm is norm for i in (0, 3, 6)] == [True, False, False]
    factor = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).float().detach()
    factor[5] = 1.0  # gamma is 0 there
    folded = original_weight(conv).detach() * factor.reshape(-1, 1, 1, 1)
    scale = weight_scales(folded).reshape(-1, 1, 1, 1)
    expected = torch.round(folded / scale) * scale / factor.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(conv.weight.detach(), expected, rtol=2.0**-22, atol=0.0)
    assert bool(torch.isfinite(conv.weight).all())
    model(images()).square().sum().backward()
    assert float(norm.weight.grad[5]) != 0.0
    assert bool(torch.isfinite(original_weight(conv).grad).all())
    assert "0.parametrizations.weight.0.norm_frozen" in model.state_dict()
    assert sum(key.endswith("running_var") for key in model.state_dict()) == 1


def test_norms_are_folded_only_where_that_is_seen_and_wanted() -> None:
    assert weight_of(fc.prepare(conv_net())[0]).norm is None
    assert weight_of(fc.prepare(conv_net(), QATConfig(fold_batchnorm=False), images())[0]).norm is None

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    assert weight_of(fc.prepare(Twice(), "W8A8", images()).conv).norm is None


def test_frozen_norms_stay_with_their_running_statistics() -> None:
    model = fc.prepare(conv_net(), "W8A8", images())
    norm = model[1]
    before = norm.running_mean.clone()
    model.train()
    model(images())
    assert not torch.equal(norm.running_mean, before)
    freeze_batchnorm(model)
    freeze_observers(model)
    before = norm.running_mean.clone()
    model.train()
    in_training = model(images())
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(model.eval()(images()), in_training)
    in_training.sum().backward()
    assert norm.weight.grad is not None
    twin = copy.deepcopy(model).train()
    assert torch.equal(twin(images()), in_training)
    assert weight_of(twin[0]).norm is twin[1]
    other = fc.prepare(conv_net(), "W8A8", images())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.train()(images()), in_training)
    assert not other[1].training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_masks_survive(method: str, optimizer: str) -> None:
    pruned = fc.prune(conv_net(), 0.75, "4x4")
    model = fc.prepare(pruned, QATConfig(method=method), images())
    assert list(masked(model)) == ["0", "3", "6"]
    before = {name: original_weight(layer).detach().clone() for name, layer in masked(model).items()}
    made = OPTIMIZERS[optimizer](model)
    train(model, made)
    freeze_observers(model)
    train(model, made, start=5)
    for name, layer in masked(model).items():
        mask = mask_of(layer)
        assert isinstance(layer.parametrizations.weight[0], Mask)
        assert bool((layer.weight[~mask] == 0).all())
        assert bool((original_weight(layer).grad[~mask] == 0).all())
        assert float((original_weight(layer)[mask] != before[name][mask]).float().mean()) > 0.9


def test_masks_may_come_and_go_later() -> None:
    model = fc.prepare(mlp(), "W8A8", calibration_data=rows())
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[::2] = True
    apply_mask(model[0], mask)
    assert bool((model[0].weight[~mask] == 0).all())
    assert float((model[0].weight[mask] != 0).float().mean()) > 0.9
    weight = model[0].weight.detach().clone()
    remove_mask(model[0])
    assert torch.equal(model[0].weight, weight)
    assert list(fake_quantized(model)) == ["0", "2"]
    again = fc.prune(model, 0.5, "4x4")
    assert list(masked(again)) == ["0", "2"]
    assert float((again[0].weight == 0).float().mean()) >= 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["train", "frozen"])
def test_training_resumes_bit_for_bit(method: str, state: str, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = fc.prepare(conv_net(), QATConfig(method=method), images(), state="off")
        return model, OPTIMIZERS["adamw"](model)

    model, optimizer = fresh()
    set_fake_quant(model, "train")
    train(model, optimizer, 3)
    set_fake_quant(model, state)
    freeze_batchnorm(model)
    train(model, optimizer, 2, start=3)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "run.pt")
    train(model, optimizer, 3, start=5)
    resumed, other = fresh()
    saved, saved_optimizer = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.load_state_dict(saved)
    other.load_state_dict(saved_optimizer)
    train(resumed, other, 3, start=5)
    assert equal_states(model, resumed)


def test_deepcopies_are_independent() -> None:
    model = fc.prepare(conv_net(), QATConfig(method="lsq"), calibration_data=images()).eval()
    twin = copy.deepcopy(model)
    expected = model(images())
    assert torch.equal(twin(images()), expected)
    train(twin, OPTIMIZERS["momentum"](twin))
    set_fake_quant(twin, "off")
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize(("method", "backend"), [("ste", "eager"), ("lsq", "aot_eager")])
def test_compiled_training_is_the_same(method: str, backend: str) -> None:
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        model = fc.prepare(conv_net(), QATConfig(method=method, targets=("0",)), images())
        call: Any = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        for step in range(3):
            if step == 2:
                freeze_observers(model)
                freeze_batchnorm(model)
            model.train()
            model.zero_grad()
            call(images(step)).square().sum().backward()
        runs.append((model.state_dict(), [p.grad for p in model.parameters()]))
    torch._dynamo.reset()
    for key, value in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][key], value)
    torch.testing.assert_close(runs[1][1], runs[0][1])
