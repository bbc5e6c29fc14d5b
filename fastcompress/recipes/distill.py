"""`distill`: train a student with a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fastcompress.distillation import DistillationLoss, SelfDistillation, TeacherCache

from .compress import compress
from .result import CompressionResult
from .stages import Distillation

__all__ = ["distill"]


def distill(
    student: nn.Module,
    teacher: nn.Module | SelfDistillation,
    train_data: Any,
    losses: str | DistillationLoss | Iterable[str | DistillationLoss] = ("logits",),
    *,
    epochs: int,
    temperature: float = 4.0,
    weight: float = 1.0,
    task_weight: float = 1.0,
    cache: TeacherCache | None = None,
    **options: Any,
) -> CompressionResult:
    """Train a student on what a teacher knows.

    Args:
        student: a network, trained or not; it is copied.
        teacher: a trained network, or `fastcompress.distillation.SelfDistillation`. It is left as it is.
        train_data, epochs: see `compress`.
        losses: names (``"logits"``, ``"feature"``, ``"attention"``, ``"relational"``) and loss objects.
        temperature: of the loss called ``"logits"``.
        weight, task_weight: factors of the teacher's losses and of the task's own.
        cache: keeps the teacher's outputs on disk.
        options: everything else that `compress` takes: ``eval_fn``, ``loss_fn``, ``optimizer``, ``checkpoint_dir``, …

    Returns:
        The trained student as ``result.model``, and the history.

    Raises:
        TypeError, ValueError, TrainingDiverged: see `compress`.

    Example:
        >>> result = fc.distill(student, teacher, loader, ["logits", "feature"], epochs=10, eval_fn=accuracy)

    Source: Hinton et al. (arXiv 1503.02531); the other losses' are with them.
    """
    listed = (losses,) if isinstance(losses, (str, DistillationLoss)) else tuple(losses)
    stage = Distillation(teacher, listed, temperature, weight, task_weight, cache=cache)
    return compress(student, stage, train_data, epochs=epochs, convert=False, **options)
