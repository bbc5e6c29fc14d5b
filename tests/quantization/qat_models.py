"""Small networks, data and training loops for the tests of quantization-aware training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcompress.quantization import InputFakeQuantize, WeightFakeQuantize
from fastcompress.quantization.fake_layer import weight_quantizer

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "conv_net",
    "images",
    "input_of",
    "labels",
    "mlp",
    "rows",
    "train",
    "weight_of",
]

METHODS = ["ste", "lsq"]

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "sgd_decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}


def conv_net() -> nn.Sequential:
    """Convolutions with a BatchNorm (of mixed signs, one 0) and without, ReLUs, and a linear; in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 16),
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1.5, 1.5, 16))
        model[1].weight[5] = 0.0
        model[1].bias.normal_()
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def rows(seed: int = 1) -> Tensor:
    """Inputs of `mlp`."""
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))


def images(seed: int = 1, count: int = 8) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 8) -> Tensor:
    return torch.arange(count) % 16


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, start: int = 0) -> None:
    """Steps on images that depend on the step's number only."""
    model.train()
    for step in range(start, start + steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images(10 + step)), labels()).backward()
        optimizer.step()


def weight_of(layer: nn.Module) -> WeightFakeQuantize:
    found = weight_quantizer(layer)
    assert found is not None
    return found


def input_of(layer: nn.Module) -> InputFakeQuantize:
    found = layer.input_fake_quant
    assert isinstance(found, InputFakeQuantize)
    return found
