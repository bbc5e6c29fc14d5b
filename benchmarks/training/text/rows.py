"""The rows of the text table: how each network is trained, all from one dense network with the same settings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.training.runs import TableRow
from benchmarks.training.text.trainer import TextSettings
from fastcompress.recipes import QAT, Distillation, Pruning, Stage

__all__ = ["DENSE", "EPOCHS", "ROWS", "STUDENT_EPOCHS", "TextRow", "fine_tuning"]

#: Of every network that starts from the dense one, and of the students, which start from nothing as the dense one did.
EPOCHS, STUDENT_EPOCHS = 12, 24

#: How the dense network itself is trained.
DENSE = TextSettings(epochs=24, peak=1e-3)

#: The first layer and the last are small and sensitive.
DENSE_LAYERS = ("patches", "head")

#: A teacher → the stages of a row.
Stages = Callable[[nn.Module], list[Stage]]


class TextRow(TableRow):
    """One line of the text table."""

    @property
    def epochs(self) -> int:
        """Passes over the training texts."""
        return STUDENT_EPOCHS if self.student else EPOCHS


def fine_tuning(row: TextRow, seed: int) -> TextSettings:
    """The settings of a row: the same for all, but that students learn longer and faster."""
    return TextSettings(row.epochs, DENSE.peak if row.student else 1e-3, seed=seed)


def _one_shot(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [Pruning(sparsity, pattern, schedule="one-shot", ignore=DENSE_LAYERS)]


def _gradual(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [Pruning(sparsity, pattern, end=EPOCHS / 2, ignore=DENSE_LAYERS)]


def _distilled(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [*_gradual(sparsity, pattern)(teacher), Distillation(teacher)]


def _full(sparsity: float, pattern: str) -> Stages:
    return lambda teacher: [*_distilled(sparsity, pattern)(teacher), QAT(start=0.6 * EPOCHS, freeze_at=0.85 * EPOCHS)]


ROWS: tuple[TextRow, ...] = (
    TextRow("dense, trained on"),
    TextRow("90% 16x4, one-shot, not trained", stages=_one_shot(0.9, "16x4"), untrained=True),
    TextRow("90% 16x4, one-shot", stages=_one_shot(0.9, "16x4")),
    TextRow("90% 16x4, gradual", stages=_gradual(0.9, "16x4")),
    TextRow("90% 16x4, gradual + distillation", stages=_distilled(0.9, "16x4")),
    TextRow("90% 16x4, gradual + distillation + W8A8", stages=_full(0.9, "16x4")),
    TextRow("80% 16x4, full recipe", stages=_full(0.8, "16x4")),
    TextRow("95% 16x4, full recipe", stages=_full(0.95, "16x4")),
    TextRow("90% 4x4, full recipe", stages=_full(0.9, "4x4")),
    TextRow("student (¼ of the parameters), alone", student=True),
    TextRow("student (¼ of the parameters), distilled", stages=lambda t: [Distillation(t)], student=True),
)
