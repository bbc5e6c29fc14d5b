"""A small network, data and a recipe for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastcompress as fc

__all__ = ["CLASSES", "SAMPLES", "Killed", "fragile", "full_recipe", "loader", "network", "same_state", "samples"]

SAMPLES, CLASSES, BATCH = 96, 4, 16


def network(dropout: float = 0.0) -> nn.Sequential:
    """Return a CNN on 1×8×8 images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16, CLASSES),
    )


def samples() -> TensorDataset:
    """Return images whose brightness in one quarter tells the class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    images = torch.rand(SAMPLES, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 1.0
    return TensorDataset(images, labels)


def _noisy(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in items])
    return images + 0.05 * torch.randn_like(images), torch.stack([label for _, label in items])


def loader(*, own_generator: bool = True, augmented: bool = True) -> DataLoader[Any]:
    """Return shuffled batches, with or without a generator of their own and random noise in the collation."""
    return DataLoader(
        samples(),
        BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(3) if own_generator else None,
        collate_fn=_noisy if augmented else None,
    )


def full_recipe() -> list[fc.recipes.Stage]:
    """Return pruning, distillation and quantization that overlap, for three epochs."""
    return [
        fc.recipes.Pruning(0.75, pattern="4x4", end=2, frequency=2),
        fc.recipes.Distillation("dense", losses=["logits", "feature"], start=0.5),
        fc.recipes.QAT("W8A8", start=1, freeze_at=2.5),
    ]


class Killed(Exception):
    """What stands for the end of a process."""


def fragile(data: DataLoader[Any], dies_at: int) -> Callable[[int], Any]:
    """Return ``train_data(epoch)`` that raises `Killed` in place of batch ``dies_at`` of the whole run."""
    steps = len(data)

    class Epoch:
        generator = data.generator

        def __init__(self, epoch: int) -> None:
            self._first = epoch * steps

        def __len__(self) -> int:
            return steps

        def __iter__(self) -> Any:
            for index, batch in enumerate(data):
                if self._first + index == dies_at:
                    raise Killed
                yield batch

    return Epoch


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models hold the same bits."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a if isinstance(a[name], Tensor))
