"""An exponential moving average of the weights (torch's AveragedModel) beside masks and fake quantization."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastcompress as fc
from fastcompress.nn.mask import mask_module
from fastcompress.nn.quantized import QuantizedLayer
from fastcompress.pruning import masked


def test_masks_and_scales_follow_into_the_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    pruner = fc.Pruner(model, fc.PrunerConfig(0.75, "4x4", end_step=20, frequency=5))
    fc.prepare(model, "W8A8", example_inputs=torch.randn(8, 16), inplace=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # before anything is pruned or observed
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(30):
        x = torch.randn(8, 16)
        optimizer.zero_grad()
        (model(x) - 1.0).pow(2).mean().backward()
        optimizer.step()
        pruner.step()
        average.update_parameters(model)

    layers, averaged = masked(model), masked(average.module)
    for name, layer in layers.items():
        mine, other = layer.weight, averaged[name].weight
        first, second = mask_module(layer), mask_module(averaged[name])
        assert isinstance(mine, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert first is not None
        assert second is not None
        assert float(first.mask.float().mean()) == 0.25
        assert torch.equal(first.mask, second.mask)
        assert bool((other[~first.mask] == 0).all())
        assert not torch.equal(mine, other)  # it is an average

    average.eval()
    simulated = {name: torch.as_tensor(layer.weight).detach().clone() for name, layer in averaged.items()}
    x = torch.randn(64, 16)
    with torch.no_grad():
        expected = average(x)
    finished = fc.convert(average.module, example_inputs=x, only_if_faster=False).eval()
    for name, weight in simulated.items():  # in this state averages are rounded, to the integers of the int8 layer
        layer = finished.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        assert torch.equal(layer.dequantize(), weight)
    with torch.no_grad():  # float sums may round an input of the second layer to its neighbour
        torch.testing.assert_close(finished(x), expected, rtol=0, atol=2e-3)
