"""Training one classifier on images: the settings, one epoch, the accuracy. Everything random comes from the seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training.augment import Augmentation, Normalizer, augment
from benchmarks.training.data import Split
from fastcompress.models.calibrate import evaluating

__all__ = ["TrainConfig", "accuracy", "learning_rate", "make_optimizer", "run_epoch"]

_SHARES = ("warm_up", "label_smoothing", "momentum")
_EVAL_BATCH = 500


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained: SGD with Nesterov momentum, linear warm-up, cosine decay to zero.

    Attributes:
        epochs: passes over the training images.
        batch: images a step; a remainder too small for a step is left out of that epoch.
        peak: the largest learning rate.
        warm_up: share of all steps in which the rate rises to ``peak``.
        momentum: Nesterov's.
        weight_decay: on weights of convolutions and linears; biases and normalization have none.
        label_smoothing: as in `torch.nn.functional.cross_entropy`. 0 by default: it makes a worse teacher (Müller,
            Kornblith, Hinton 2019, section 4).
        augmentation: random changes to the images.
        bf16: convolutions in bfloat16 (autocast); weights, normalization and evaluation stay float32.
        seed: of initialization, order and augmentation.
    """

    epochs: int = 100
    batch: int = 128
    peak: float = 0.1
    warm_up: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(shift=2, flip=0.5, erase=0.5))
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"TrainConfig: {name} must be an integer, got {value!r:.60}")
            if value < low:
                raise ValueError(f"TrainConfig: {name} must be at least {low}, got {value}")
        for name in ("peak", "weight_decay", *_SHARES):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"TrainConfig: {name} must be a number, got {value!r:.60}")
            if not math.isfinite(value) or value < 0 or (name == "peak" and value == 0):
                raise ValueError(f"TrainConfig: {name} must be positive and finite, got {value!r}")
            if name in _SHARES and value >= 1:
                raise ValueError(f"TrainConfig: {name} must lie in [0, 1), got {value!r}")
        if not isinstance(self.augmentation, Augmentation):
            raise TypeError(f"TrainConfig: augmentation must be an Augmentation, got {self.augmentation!r:.60}")
        if not isinstance(self.bf16, bool):
            raise TypeError(f"TrainConfig: bf16 must be True or False, got {self.bf16!r:.60}")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        values = dataclasses.asdict(self)
        values["augmentation"]["erase_area"] = list(self.augmentation.erase_area)
        return values


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of one step: linear up to the peak over the warm-up, then half a cosine that would end at zero.

    Args:
        config: peak and warm-up.
        step: 0 ≤ step < steps.
        steps: of the whole run.

    Source: Loshchilov and Hutter 2017, equation 5; Goyal et al. 2017, section 2.2 (warm-up).
    """
    rising = math.ceil(config.warm_up * steps)
    if step < rising:
        return config.peak * (step + 1) / rising
    return config.peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD over two groups of parameters: weights with decay, everything of one dimension without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.peak, momentum=config.momentum, nesterov=config.momentum > 0)


def run_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Split,
    normalizer: Normalizer,
    config: TrainConfig,
    epoch: int,
    on_step: Callable[[float], None] | None = None,
) -> float:
    """Train for one epoch and return its mean loss.

    Order and augmentation depend on the seed and the epoch's number only, so a run can go on from any epoch's end.

    Args:
        model, optimizer: changed in place.
        train: the images.
        normalizer: applied after augmentation.
        config: the settings.
        epoch: 0 ≤ epoch < config.epochs.
        on_step: called with the loss of each step.

    Raises:
        ValueError: fewer images than one batch.
        FloatingPointError: the loss is not finite; the message names epoch and step, and the step was not taken.
    """
    per_epoch = len(train) // config.batch
    if per_epoch == 0:
        raise ValueError(f"run_epoch: {len(train)} images are fewer than one batch of {config.batch}; lower batch")
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(train), generator=generator)
    total = 0.0
    model.train()
    for step in range(per_epoch):
        chosen = train.take(order[step * config.batch : (step + 1) * config.batch])
        images = normalizer(augment(chosen.images, config.augmentation, generator))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            scores = model(images)
        loss = functional.cross_entropy(scores.float(), chosen.labels, label_smoothing=config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"run_epoch: the loss is {value} in epoch {epoch}, step {step}; lower the learning rate (peak)"
            )
        optimizer.zero_grad()
        loss.backward()
        rate = learning_rate(config, epoch * per_epoch + step, config.epochs * per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        total += value
        if on_step is not None:
            on_step(value)
    return total / per_epoch


def accuracy(model: Callable[[Tensor], Tensor], split: Split, normalizer: Normalizer) -> float:
    """Percent of the images whose largest score is their class, in float32.

    Args:
        model: an `nn.Module`, evaluated in evaluation mode, or any function of normalized images.
        split: the images.
        normalizer: the one that the model was trained with.

    Raises:
        ValueError: no images.
    """
    if len(split) == 0:
        raise ValueError("accuracy: there are no images to judge by")
    if isinstance(model, nn.Module):
        with evaluating(model):
            return _accuracy(model, split, normalizer)
    with torch.no_grad():
        return _accuracy(model, split, normalizer)


def _accuracy(model: Callable[[Tensor], Tensor], split: Split, normalizer: Normalizer) -> float:
    right = 0
    for start in range(0, len(split), _EVAL_BATCH):
        images, labels = split.images[start : start + _EVAL_BATCH], split.labels[start : start + _EVAL_BATCH]
        right += int((model(normalizer(images)).argmax(1) == labels).sum())
    return 100 * right / len(split)
