"""Distillation of where a network looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from fastcompress.models.choices import check_choice

from .loss import DistillationLoss, kept_mean, same_batch

__all__ = ["AttentionTransferLoss"]


@dataclass(frozen=True)
class AttentionTransferLoss(DistillationLoss):
    """Squared distance of normalised attention maps; needs no projection, whatever the widths.

    ``maps="activation"``: features become one map, the sum of squares over the channels, which is flattened and divided
    by its norm. The loss is ``‖q_student - q_teacher‖²``, between 0 and 2, the mean over samples. Maps of different
    height or width are pooled to the smaller of each.

    ``maps="attention"``: the attention probabilities [batch, heads, queries, keys] of a transformer, their mean squared
    difference; averaged over the heads first where their numbers differ.

    Args:
        student_tap: module of the student; None finds it, see `automatic_taps`. Attention probabilities are never found
            by themselves: name the module that returns them, such as ``"encoder.layer.3.attention.self[1]"``.
        teacher_tap: module of the teacher; None means the same name, or is found where ``student_tap`` is None as well.
        weight: factor of the loss, at least 0.
        maps: ``"activation"`` or ``"attention"``.
        mask: for tokens: the entry of a dict batch that says which count; None takes a fitting ``"attention_mask"``.

    Raises:
        TypeError, ValueError: a wrong field; on a call, shapes that cannot be compared.

    Example:
        >>> AttentionTransferLoss("layer2", "layer2", weight=10.0)

    Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", section 3.1 (F_sum with p = 2; the paper
    takes the norm, which has no gradient where the maps agree, its code the mean of squares over positions);
    attention probabilities: Jiao et al. 2020, "TinyBERT", eq. 7.
    """

    student_tap: str | None = None
    teacher_tap: str | None = None
    weight: float = 1.0
    maps: str = "activation"
    mask: str | None = None

    label: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        self._check_fields()
        check_choice("AttentionTransferLoss", "maps", self.maps, ("activation", "attention"))
        if self.maps == "attention" and self.student_tap is None:
            raise ValueError(
                "AttentionTransferLoss: maps='attention' needs student_tap, the module that returns the attention "
                "probabilities [batch, heads, queries, keys]; they are not found by themselves"
            )

    def check(self, student: Tensor, teacher: Tensor) -> None:
        same_batch("AttentionTransferLoss", student, teacher)
        allowed = (4,) if self.maps == "attention" else (3, 4)
        kinds = (
            "[batch, heads, queries, keys]"
            if self.maps == "attention"
            else "[batch, channels, height, width] or [batch, tokens, features]"
        )
        shapes = f"the student's tensor has shape {list(student.shape)}, the teacher's {list(teacher.shape)}"
        if student.dim() != teacher.dim() or student.dim() not in allowed:
            raise ValueError(f"AttentionTransferLoss: {shapes}; for maps={self.maps!r} both must be {kinds}")
        positions = slice(2, 4) if self.maps == "attention" else slice(1, 2)
        if (self.maps == "attention" or student.dim() == 3) and student.shape[positions] != teacher.shape[positions]:
            raise ValueError(f"AttentionTransferLoss: {shapes}; both must have the same tokens: use one tokenizer")

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.maps == "attention":
            if student.shape[1] != teacher.shape[1]:
                return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
            return student, teacher
        if student.dim() == 3:
            return student.square().sum(-1), teacher.square().sum(-1)
        student, teacher = student.square().sum(1), teacher.square().sum(1)
        if student.shape != teacher.shape:
            size = (min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2]))
            student, teacher = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
        return student.flatten(1), teacher.flatten(1)

    def value(self, student: Tensor, teacher: Tensor, kept: Tensor | None) -> Tensor:
        if self.maps == "attention":
            pairs = None if kept is None else (kept[:, None, :, None] & kept[:, None, None, :])
            return kept_mean((student - teacher).square(), pairs)
        if kept is not None:
            student, teacher = student.where(kept, 0.0), teacher.where(kept, 0.0)
        difference = F.normalize(student, dim=1) - F.normalize(teacher, dim=1)
        return kept_mean(difference.square().sum(1), None)

    def positions(self, student: Tensor) -> tuple[int, ...] | None:
        if self.maps == "attention":
            queries_are_keys = student.dim() == 4 and student.shape[2] == student.shape[3]
            return (student.shape[0], student.shape[2]) if queries_are_keys else None
        return super().positions(student)
