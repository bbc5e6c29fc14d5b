"""Distillation of what inner modules return (hints)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcompress.models.choices import check_choice

from .loss import DistillationLoss, kept_mean, same_batch
from .projection import Projection

__all__ = ["FeatureLoss"]

_KINDS = {2: "[batch, features]", 3: "[batch, tokens, features]", 4: "[batch, channels, height, width]"}


@dataclass(frozen=True)
class FeatureLoss(DistillationLoss):
    """Mean squared difference of two feature tensors, after a trained projection of the student's.

    Heights and widths that differ are brought to the smaller of each by adaptive average pooling.

    Args:
        student_tap: module of the student whose output is compared; None finds it, see `automatic_taps`.
        teacher_tap: module of the teacher; None means the same name, or is found where ``student_tap`` is None as well.
        weight: factor of the loss, at least 0.
        projection: ``"auto"``: a linear map of the width ([batch, features], [batch, tokens, features]) or a 1×1
            convolution ([batch, channels, height, width]) where the widths differ; ``"always"``: also where they do
            not; ``"none"``: never, different widths are an error.
        mask: for tokens: the entry of a dict batch that says which count; None takes a fitting ``"attention_mask"``.

    Raises:
        TypeError, ValueError: a wrong field; on a call, shapes that cannot be compared.

    Example:
        >>> FeatureLoss("layer3", weight=0.5)

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", section 2.2 (there half the squared norm, here the
    mean, so that the weight does not depend on the size of the features).
    """

    student_tap: str | None = None
    teacher_tap: str | None = None
    weight: float = 1.0
    projection: str = "auto"
    mask: str | None = None

    label: ClassVar[str] = "feature"

    def __post_init__(self) -> None:
        self._check_fields()
        check_choice("FeatureLoss", "projection", self.projection, ("auto", "always", "none"))

    def check(self, student: Tensor, teacher: Tensor) -> None:
        self._check_kind(student, teacher)
        if _width(student) != _width(teacher):
            raise ValueError(
                f"FeatureLoss: the student has {_width(student)} features or channels (shape {list(student.shape)}), "
                f"the teacher {_width(teacher)} (shape {list(teacher.shape)}); allow a projection: projection='auto'"
            )

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if student.dim() != 4 or student.shape[2:] == teacher.shape[2:]:
            return student, teacher
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)

    def make_projection(self, student: Tensor, teacher: Tensor, generator: torch.Generator) -> nn.Module | None:
        self._check_kind(student, teacher)
        differ = _width(student) != _width(teacher)
        if self.projection == "none" or (self.projection == "auto" and not differ):
            return None
        return Projection(student, _width(teacher), generator)

    def value(self, student: Tensor, teacher: Tensor, kept: Tensor | None) -> Tensor:
        return kept_mean((student - teacher).square(), None if kept is None else kept.unsqueeze(-1))

    def _check_kind(self, student: Tensor, teacher: Tensor) -> None:
        same_batch("FeatureLoss", student, teacher)
        if student.dim() != teacher.dim() or student.dim() not in _KINDS:
            raise ValueError(
                f"FeatureLoss: the student's features have shape {list(student.shape)}, the teacher's "
                f"{list(teacher.shape)}; both must be of one kind: {', '.join(_KINDS.values())}"
            )
        if student.dim() == 3 and student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"FeatureLoss: the student has {student.shape[1]} tokens, the teacher {teacher.shape[1]} (shapes "
                f"{list(student.shape)} and {list(teacher.shape)}); they are compared one by one: use one tokenizer"
            )


def _width(x: Tensor) -> int:
    return x.shape[1] if x.dim() == 4 else x.shape[-1]
