"""The settings of a run that a recipe file may hold beside its stages."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from .optimizers import LearningRate, learning_rate_factor

__all__ = ["AUTOCAST_DTYPES", "RunSettings"]

#: Names of `torch` data types of automatic mixed precision.
AUTOCAST_DTYPES: tuple[str, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class RunSettings:
    """Numbers and names of a run; each None leaves the choice to `compress` or to what else is given.

    Attributes:
        epochs, learning_rate, max_drop, steps_per_epoch, autocast, clip_norm, checkpoint_every, seed: see `compress`.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> fc.recipes.RunSettings(epochs=8, max_drop=0.01)
    """

    epochs: int | None = None
    learning_rate: str | LearningRate | None = None
    max_drop: float | None = None
    steps_per_epoch: int | None = None
    autocast: torch.dtype | None = None
    clip_norm: float | None = None
    checkpoint_every: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                what = "number of batches" if name == "steps_per_epoch" else "whole number"
                raise ValueError(f"compress: {name} must be a positive {what}, got {value!r:.80}")
        if self.learning_rate is not None:
            learning_rate_factor(self.learning_rate)
        for name in ("max_drop", "clip_norm"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"compress: {name} must be a finite number, got {value!r:.80}")
        if self.max_drop is not None and self.max_drop < 0:
            raise ValueError(f"compress: max_drop must be zero or more, got {self.max_drop!r}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"compress: clip_norm must be above zero, got {self.clip_norm!r}")
        if self.autocast is not None and self.autocast not in [getattr(torch, name) for name in AUTOCAST_DTYPES]:
            listed = " or ".join(f"torch.{name}" for name in AUTOCAST_DTYPES)
            raise ValueError(f"compress: autocast must be {listed}, got {self.autocast!r:.80}")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise TypeError(f"compress: seed must be an int, got {self.seed!r:.80}")

    def or_else(self, other: RunSettings) -> RunSettings:
        """These settings, and where they are None those of ``other``."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(other, **{name: value for name, value in own.items() if value is not None})

    def required(self) -> tuple[int, str | LearningRate, int]:
        """Epochs, learning rate and seed, the last two with their defaults ``"cosine"`` and 0.

        Raises:
            ValueError: nobody said how many epochs.
        """
        if self.epochs is None:
            raise ValueError(
                "compress: epochs must be a positive whole number, got None; pass epochs=…, or write it "
                "into the recipe file"
            )
        learning_rate = "cosine" if self.learning_rate is None else self.learning_rate
        return self.epochs, learning_rate, 0 if self.seed is None else self.seed
