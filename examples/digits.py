"""A small network on scikit-learn's handwritten digits, trained and then compressed by a full recipe, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastcompress as fc

__all__ = ["Digits", "accuracy_on", "compress_digits", "digits", "digits_network", "train_dense"]

TEST = 397  # of 1,797 images


@dataclass(frozen=True)
class Digits:
    """Images ``[n, 1, 8, 8]`` from 0 to 1, and their digits."""

    train: TensorDataset
    test_images: Tensor
    test_labels: Tensor

    def loader(self, seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of 64 in a new order every epoch."""
        return DataLoader(self.train, 64, shuffle=True, generator=torch.Generator().manual_seed(seed))


def digits() -> Digits:
    """Return the images, shuffled once and split."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return Digits(TensorDataset(images[TEST:], labels[TEST:]), images[:TEST], labels[:TEST])


def digits_network(width: int = 64) -> nn.Sequential:
    """Return an untrained network: three convolutions with BatchNorm, pooling, a linear head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, width // 2, 1), (width // 2, width, 1), (width, 2 * width, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def accuracy_on(data: Digits) -> Callable[[nn.Module], float]:
    """Return the function that gives a model's share of right answers on the test images."""

    def accuracy(model: nn.Module) -> float:
        return (model(data.test_images).argmax(1) == data.test_labels).float().mean().item()

    return accuracy


def train_dense(data: Digits, epochs: int = 10) -> nn.Sequential:
    """Return a trained network."""
    model, loader = digits_network(), data.loader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def compress_digits(
    model: nn.Module, data: Digits, epochs: int = 12, progress: bool | None = None
) -> fc.recipes.CompressionResult:
    """Return the network after gradual pruning, distillation from itself and quantization-aware training at once."""
    recipe = [
        fc.recipes.Pruning(0.9, pattern="4x4", schedule="cubic", start=0, end=0.5 * epochs),
        fc.recipes.Distillation("dense", losses=["logits", "feature"], temperature=4.0),
        fc.recipes.QAT("W8A8", start=0.6 * epochs, freeze_at=0.9 * epochs),
    ]
    return fc.compress(
        model,
        recipe,
        data.loader(),
        epochs=epochs,
        eval_fn=accuracy_on(data),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        example_inputs=data.test_images[:64],
        progress=progress,
    )
