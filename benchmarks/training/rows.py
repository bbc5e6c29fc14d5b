"""The rows of the image table: how each network is trained, all from one dense network with the same settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.training.augment import Augmentation
from benchmarks.training.network import ResidualCNN
from benchmarks.training.runs import TableRow
from benchmarks.training.trainer import TrainConfig
from fastcompress.pruning import erdos_renyi
from fastcompress.recipes import QAT, Distillation, Pruning, Stage

__all__ = ["EPOCHS", "ROWS", "STUDENT_EPOCHS", "Row", "fine_tuning"]

#: Of every network that starts from the dense one, and of the students, which start from nothing.
EPOCHS, STUDENT_EPOCHS = 16, 20

#: The first convolution has one input channel, which no block fits; the head is small.
DENSE_LAYERS = ("stem.conv", "head")

#: A teacher → the stages of a row.
Stages = Callable[[ResidualCNN], list[Stage]]


class Row(TableRow):
    """One line of the image table."""

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return STUDENT_EPOCHS if self.student else EPOCHS


def fine_tuning(row: Row, seed: int) -> TrainConfig:
    """The settings of a row, found on the validation split: the same for all, but that students start from nothing.

    Nothing is erased from the images and weights decay less than in the dense network's training: networks with a tenth
    of the weights fit even the training images less well.
    """
    return TrainConfig(
        epochs=row.epochs,
        peak=0.1 if row.student else 0.05,
        weight_decay=5e-4 if row.student else 1e-4,
        augmentation=Augmentation(shift=2, flip=0.5),
        seed=seed,
    )


def _pruning(teacher: ResidualCNN, sparsity: float, pattern: str, **options: Any) -> Pruning:
    """Early layers have few weights and keep more of them (ERK)."""
    spread: Mapping[Any, float] = erdos_renyi(teacher, sparsity, pattern, ignore=DENSE_LAYERS)
    return Pruning(spread, pattern, ignore=DENSE_LAYERS, **options)


def _one_shot(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [_pruning(teacher, sparsity, pattern, schedule="one-shot")]


def _gradual(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [_pruning(teacher, sparsity, pattern, end=0.375 * EPOCHS)]


def _distilled(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [*_gradual(sparsity, pattern)(teacher), Distillation(teacher)]


def _qat() -> Stage:
    return QAT(start=EPOCHS * 2 / 3, freeze_at=0.85 * EPOCHS)


def _full(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [*_distilled(sparsity, pattern)(teacher), _qat()]


def _channels(sparsity: float) -> Stages:
    return lambda teacher: [
        Pruning(sparsity, "channel", end=EPOCHS // 4, ignore=("head",)),
        Distillation(teacher),
        _qat(),
    ]


_HEADLINE = (0, 1, 2)

ROWS: tuple[Row, ...] = (
    Row("dense, trained on", (0,), None),
    Row("90% 4x4, one-shot, not trained", (0,), _one_shot(0.9, "4x4"), untrained=True),
    Row("90% 4x4, one-shot", _HEADLINE, _one_shot(0.9, "4x4")),
    Row("90% 4x4, gradual", _HEADLINE, _gradual(0.9, "4x4")),
    Row("90% 4x4, gradual + distillation", _HEADLINE, _distilled(0.9, "4x4")),
    Row("90% 4x4, gradual + distillation + W8A8", _HEADLINE, _full(0.9, "4x4")),
    Row("80% 4x4, full recipe", (0,), _full(0.8, "4x4")),
    Row("95% 4x4, full recipe", (0,), _full(0.95, "4x4")),
    Row("90% 16x4, full recipe", (0,), _full(0.9, "16x4")),
    Row("90% 1x4, full recipe", (0,), _full(0.9, "1x4")),
    Row("90% unstructured, full recipe", (0,), _full(0.9, "unstructured")),
    Row("50% channels, full recipe", (0,), _channels(0.5)),
    Row("student (¼ of the parameters), alone", _HEADLINE, None, student=True),
    Row("student (¼ of the parameters), distilled", _HEADLINE, lambda teacher: [Distillation(teacher)], student=True),
)
