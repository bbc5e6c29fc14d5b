"""The residual network of the image results: the wider its layers, the fewer pixels they see, as in ResNets.

So most parameters, and what pruning can spare, are in the last stage: of 1.4 million 0.9 million in its block. What a
sparse convolution costs at run time is mostly reading its input, whatever its number of outputs; a dense one costs
inputs times outputs: another reason for few, wide layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import evaluating

__all__ = ["DENSE", "ConvNorm", "NetworkConfig", "Residual", "ResidualCNN", "Stage", "count_macs", "student_of"]


def _check_positive(owner: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be a positive integer, got {value!r:.60}")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Stage:
    """One convolution to ``width`` channels with ``stride``, and a residual block behind it if ``residual``."""

    width: int
    stride: int = 1
    residual: bool = False

    def __post_init__(self) -> None:
        _check_positive("Stage", "width", self.width)
        if self.stride not in (1, 2) or isinstance(self.stride, bool):
            raise ValueError(f"Stage: stride must be 1 or 2, got {self.stride!r:.60}")
        if not isinstance(self.residual, bool):
            raise TypeError(f"Stage: residual must be True or False, got {self.residual!r:.60}")


@dataclass(frozen=True)
class NetworkConfig:
    """The sizes of a `ResidualCNN`; ``NetworkConfig()`` is the network of the results.

    Attributes:
        in_channels: of the images: 1 for Fashion-MNIST, 3 for CIFAR-10.
        classes: outputs of the head.
        stem: channels of the first convolution, which halves the resolution.
        stages: what follows it.
    """

    in_channels: int = 1
    classes: int = 10
    stem: int = 32
    stages: tuple[Stage, ...] = (
        Stage(48),
        Stage(96, stride=2),
        Stage(144, stride=2),
        Stage(224, stride=2, residual=True),
    )

    def __post_init__(self) -> None:
        for name in ("in_channels", "classes", "stem"):
            _check_positive("NetworkConfig", name, getattr(self, name))
        if not isinstance(self.stages, tuple) or not all(isinstance(stage, Stage) for stage in self.stages):
            raise TypeError(f"NetworkConfig: stages must be a tuple of Stage, got {self.stages!r:.80}")
        if not self.stages:
            raise ValueError("NetworkConfig: stages is empty; give at least one Stage")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkConfig:
        """The configuration that `to_json` wrote; fields that it does not know raise ``TypeError``."""
        return cls(**{**values, "stages": tuple(Stage(**stage) for stage in values["stages"])})


DENSE = NetworkConfig()


class ConvNorm(nn.Module):
    """A 3×3 convolution, batch normalization and, if ``relu``, ReLU: ``[n, c, h, w]`` to ``[n, width, h', w']``."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU() if relu else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        # Under autocast the convolution gives bfloat16: normalizing in float32 is more exact, and on CPUs faster.
        y = self.norm(y.float() if torch.is_autocast_enabled("cpu") else y)
        return y if self.relu is None else self.relu(y)


class Residual(nn.Module):
    """Two convolutions whose result is added to the input: ``[n, width, h, w]`` in and out.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 3.2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.second(self.first(x)))


class ResidualCNN(nn.Module):
    """The network: stem, stages, mean over the pixels, linear head; any image size from 8×8.

    Args:
        config: its sizes.

    Example:
        >>> ResidualCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: NetworkConfig = DENSE) -> None:
        super().__init__()
        if not isinstance(config, NetworkConfig):
            raise TypeError(f"ResidualCNN: config must be a NetworkConfig, got {type(config).__name__}")
        self.config = config
        self.stem = ConvNorm(config.in_channels, config.stem, stride=2)
        layers: list[nn.Module] = []
        width = config.stem
        for stage in config.stages:
            layers.append(ConvNorm(width, stage.width, stage.stride))
            layers += [Residual(stage.width)] if stage.residual else []
            width = stage.width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[n, classes]`` of normalized images ``[n, in_channels, height, width]``."""
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def student_of(config: NetworkConfig = DENSE) -> NetworkConfig:
    """The same network at half the width, with a quarter of the parameters.

    Raises:
        ValueError: a width is odd; the message names it.

    Example:
        >>> student = ResidualCNN(student_of())
    """
    for width in (config.stem, *(stage.width for stage in config.stages)):
        if width % 2:
            raise ValueError(f"student_of: width {width} cannot be halved; use even widths")
    stages = tuple(dataclasses.replace(stage, width=stage.width // 2) for stage in config.stages)
    return dataclasses.replace(config, stem=config.stem // 2, stages=stages)


def count_macs(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of every convolution and linear layer for one input of ``shape`` (without the batch).

    Args:
        model: run once on zeros, in evaluation mode; its own mode is put back.
        shape: for example ``(1, 28, 28)``.

    Example:
        >>> count_macs(nn.Conv2d(1, 2, 3, padding=1), (1, 4, 4))
        288
    """
    seen: list[int] = []

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Each output element is one row of the weight times a patch of the input.
        seen.append(output.numel() * weight[0].numel())

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluating(model):
            model(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return sum(seen)
