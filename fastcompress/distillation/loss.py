"""What every distillation loss is: a weight, the two tensors it compares, and a scalar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from .checks import name_or_none, number

__all__ = ["DistillationLoss", "kept_mean", "same_batch", "wide"]


class DistillationLoss(ABC):
    """A term of the training loss that compares a student's tensor with a teacher's.

    Subclasses are frozen dataclasses. Calling one on the two tensors gives ``weight`` times its value, a scalar; the
    teacher's tensor is a constant. A subclass without taps compares logits.
    """

    #: The key of the loss in what `Distiller.loss` returns.
    label: ClassVar[str]
    #: Whether the loss compares outputs of inner modules rather than logits.
    uses_taps: ClassVar[bool] = True

    weight: float
    student_tap: str | None = None
    teacher_tap: str | None = None
    mask: str | None = None
    ignore_index: int | None = None

    def __call__(self, student: Tensor, teacher: Tensor, kept: Tensor | None = None) -> Tensor:
        """``weight`` times the loss.

        Args:
            student: the student's tensor; gradients flow into it.
            teacher: the teacher's, of the same batch; no gradient.
            kept: boolean, True at positions that count, of the shape `positions` gives; None counts all.

        Raises:
            ValueError: the shapes cannot be compared.
        """
        teacher = wide(teacher.detach())
        student = wide(student)
        self.check(student, teacher)
        # Autocast would compute the products in here in half precision again.
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = self.align(student, teacher)
            return self.weight * self.value(student, teacher, kept)

    @abstractmethod
    def check(self, student: Tensor, teacher: Tensor) -> None:
        """Raise ValueError where the two shapes cannot be compared."""

    @abstractmethod
    def value(self, student: Tensor, teacher: Tensor, kept: Tensor | None) -> Tensor:
        """The loss of two aligned float32 or float64 tensors, a scalar."""

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The two tensors brought to one size where that takes no parameters."""
        return student, teacher

    def make_projection(self, student: Tensor, teacher: Tensor, generator: torch.Generator) -> nn.Module | None:
        """A trainable module that brings the student's width to the teacher's, or None where none is needed."""
        return None

    def positions(self, student: Tensor) -> tuple[int, ...] | None:
        """The shape that a mask of positions must have for this tensor, or None where the loss knows no positions."""
        return tuple(student.shape[:2]) if student.dim() == 3 else None

    def _check_fields(self) -> None:
        owner = type(self).__name__
        object.__setattr__(self, "weight", number(owner, "weight", self.weight))
        name_or_none(owner, "student_tap", self.student_tap, "a module name")
        name_or_none(owner, "teacher_tap", self.teacher_tap, "a module name")
        name_or_none(owner, "mask", self.mask, "the name of an entry of the batch")
        if self.student_tap is None and self.teacher_tap is not None:
            raise ValueError(
                f"{owner}: teacher_tap is {self.teacher_tap!r}, student_tap is None; name both, student_tap only (the "
                "teacher's module then has the same name), or neither"
            )


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 as it is: half precision sums too coarsely for a loss."""
    return x if x.dtype == torch.float64 else x.float()


def kept_mean(values: Tensor, kept: Tensor | None) -> Tensor:
    """The mean of ``values`` where ``kept`` is True; 0 where nothing is left.

    Args:
        values: any shape.
        kept: boolean, broadcastable to it; dropped values may be NaN.
    """
    if kept is None:
        return values.sum() / max(1, values.numel())
    kept = kept.expand_as(values)
    return torch.where(kept, values, 0.0).sum() / kept.sum().clamp(min=1)


def same_batch(owner: str, student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both tensors have the same first dimension."""
    if student.dim() == 0 or teacher.dim() == 0 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"{owner}: the student's tensor has shape {list(student.shape)}, the teacher's {list(teacher.shape)}; the "
            "first dimension is the batch and must be the same: run both on one batch"
        )
