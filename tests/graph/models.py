"""Small models to freeze, and how they are made int8 whatever their speed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc


class Block(nn.Module):
    """A residual block with a projection where the width changes; ReLU as a function, the addition in place."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.act(self.first(x)))
        y += self.shortcut(x)
        return F.relu(y)


class Net(nn.Module):
    """Stem, two residual blocks, head; takes images of ``channels``."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, stride=2, padding=1)
        self.act = nn.ReLU6()
        self.dropout = nn.Dropout(0.5)
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.dropout(self.act(self.stem(image))))
        return self.head(x.mean((2, 3)))


def images(count: int = 4, channels: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def int8(model: nn.Module, *batches: Tensor, scheme: str = "W8A8", **options: Any) -> nn.Module:
    """The model with every layer in int8."""
    config = fc.QuantConfig(scheme, only_if_faster=False, **options)
    return fc.quantize(model.eval(), config, calibration_data=list(batches)).eval()
