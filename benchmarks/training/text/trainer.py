"""Training one network on texts: the settings, the batches, the accuracy. Everything random comes from the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastcompress as fc
from benchmarks.training.text.data import LENGTH, TextDataset, TextSplit
from benchmarks.training.text.network import PATCH
from fastcompress.models.calibrate import evaluating
from fastcompress.recipes import CompressionResult, Stage

__all__ = ["TextBatches", "TextSettings", "accuracy", "fit"]

_EVAL_BATCH = 256


@dataclass(frozen=True)
class TextSettings:
    """How a network is trained: AdamW, a twentieth of warm-up, half a cosine to zero, gradients clipped to norm 1.

    Attributes:
        epochs: passes over the training texts.
        peak: the largest learning rate.
        batch: texts a step; a remainder too small for a step is left out of that epoch.
        weight_decay: on matrices; biases and normalization have none.
        seed: of initialization, order and windows.
    """

    epochs: int
    peak: float
    batch: int = 128
    weight_decay: float = 0.05
    seed: int = 0


class TextBatches:
    """The batches of one epoch; they depend on the seed and the epoch's number only.

    Of a long text a random window is read, and a text's first byte is at a random place of its token, so that the
    network learns every split into tokens.
    """

    def __init__(self, split: TextSplit, settings: TextSettings, epoch: int) -> None:
        self._split, self._settings, self._epoch = split, settings, epoch

    def __len__(self) -> int:
        return len(self._split) // self._settings.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self._settings.batch
        generator = torch.Generator().manual_seed(self._settings.seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._split), generator=generator)
        for step in range(len(self)):
            chosen = self._split.take(order[step * batch : (step + 1) * batch])
            yield _windows(chosen.texts, generator), chosen.labels


def _windows(texts: Tensor, generator: torch.Generator) -> Tensor:
    """``LENGTH`` bytes of each text, from up to ``PATCH - 1`` before its first on, int64."""
    spare = ((texts != 0).sum(1, keepdim=True) - LENGTH).clamp_min(0)
    share = torch.rand(len(texts), 1, generator=generator)
    start = (share * (spare + PATCH)).long() - (PATCH - 1)
    source = start + torch.arange(LENGTH)
    return texts.long().gather(1, source.clamp_min(0)) * (source >= 0)


def accuracy(model: nn.Module, split: TextSplit) -> float:
    """Percent of the texts whose largest score is their language, in evaluation mode.

    Raises:
        ValueError: no texts.
    """
    if len(split) == 0:
        raise ValueError("accuracy: there are no texts to judge by")
    right = 0
    with evaluating(model):
        for texts, labels in zip(split.inputs().split(_EVAL_BATCH), split.labels.split(_EVAL_BATCH), strict=True):
            right += int((model(texts).argmax(1) == labels).sum())
    return 100 * right / len(split)


def fit(
    start: nn.Module,
    stages: Sequence[Stage],
    settings: TextSettings,
    data: TextDataset,
    folder: Path,
    progress: bool | None = None,
) -> CompressionResult:
    """Train a copy of ``start``, or go on with it; what is finished already returns at once.

    Args:
        start: the network.
        stages: of `fastcompress.compress`; none: plain training.
        settings: the same for all networks that are compared.
        data: trained on ``train``, judged after each epoch by ``validation``.
        folder: of the checkpoints.
        progress: None: a bar on terminals.
    """

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=settings.peak)

    # For a few tokens the plain form of attention trains a third faster than the fused one; the scores are the same.
    with sdpa_kernel(SDPBackend.MATH):
        return fc.compress(
            start,
            stages,
            lambda epoch: TextBatches(data.train, settings, epoch),
            epochs=settings.epochs,
            eval_fn=lambda model: accuracy(model, data.validation),
            optimizer=optimizer,
            learning_rate="cosine",
            autocast=torch.bfloat16,
            clip_norm=1.0,
            checkpoint_dir=folder,
            convert=False,
            seed=settings.seed,
            progress=progress,
        )
