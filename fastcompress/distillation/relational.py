"""Distillation of how the samples of a batch lie relative to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import number
from .loss import DistillationLoss, kept_mean, same_batch

__all__ = ["RelationalLoss"]


@dataclass(frozen=True)
class RelationalLoss(DistillationLoss):
    """Huber loss between the distances, and between the angles, that samples of one batch have in both networks.

    Distances are divided by their mean over the batch; angles are cosines at the middle one of three samples. Both are
    means over all pairs or triplets of different samples, so that the weight does not depend on the batch size (the
    angles take memory of batch³). No projection is needed. Features with positions are averaged over them first; fewer
    than two (three) samples have no distance (angle) and give 0.

    Args:
        student_tap: module of the student whose output is the embedding; None finds it, see `automatic_taps`.
        teacher_tap: module of the teacher; None means the same name, or is found where ``student_tap`` is None as well.
        weight: factor of the loss, at least 0.
        distance: factor of the distances within it, at least 0.
        angle: factor of the angles within it, at least 0.
        mask: for tokens: the entry of a dict batch that says which count; None takes a fitting ``"attention_mask"``.

    Raises:
        TypeError, ValueError: a wrong field; on a call, different batches, or no batch of vectors, tokens or maps.

    Example:
        >>> RelationalLoss("avgpool", weight=10.0)

    Source: Park et al. 2019, "Relational Knowledge Distillation", section 3.2, eq. 5-10 (sums there, means here).
    """

    student_tap: str | None = None
    teacher_tap: str | None = None
    weight: float = 1.0
    distance: float = 1.0
    angle: float = 2.0
    mask: str | None = None

    label: ClassVar[str] = "relational"

    def __post_init__(self) -> None:
        self._check_fields()
        for name in ("distance", "angle"):
            object.__setattr__(self, name, number("RelationalLoss", name, getattr(self, name)))
        if self.distance == 0.0 and self.angle == 0.0:
            raise ValueError("RelationalLoss: distance and angle are both 0; give one of them a factor above 0")

    def check(self, student: Tensor, teacher: Tensor) -> None:
        same_batch("RelationalLoss", student, teacher)
        for whose, x in (("student", student), ("teacher", teacher)):
            if x.dim() not in (2, 3, 4):
                raise ValueError(
                    f"RelationalLoss: the {whose}'s embedding has shape {list(x.shape)}; it must be [batch, features], "
                    "[batch, tokens, features] or [batch, channels, height, width]"
                )

    def value(self, student: Tensor, teacher: Tensor, kept: Tensor | None) -> Tensor:
        s, t = (x[:, None] - x[None, :] for x in (_vectors(student, kept), _vectors(teacher, kept)))
        s_distance, t_distance = _norms(s), _norms(t)
        distinct = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        loss = student.new_zeros(())
        if self.distance:
            pairs = F.smooth_l1_loss(_scaled(s_distance, distinct), _scaled(t_distance, distinct), reduction="none")
            loss = loss + self.distance * kept_mean(pairs, distinct)
        if self.angle:
            # [j, i, k]: the cosine at sample j between the directions to i and k.
            s_unit, t_unit = (d / n.where(n > 0, 1.0)[..., None] for d, n in ((s, s_distance), (t, t_distance)))
            triplets = F.smooth_l1_loss(s_unit @ s_unit.mT, t_unit @ t_unit.mT, reduction="none")
            loss = loss + self.angle * kept_mean(triplets, distinct[:, :, None] & distinct[:, None, :] & distinct[None])
        return loss


def _vectors(x: Tensor, kept: Tensor | None) -> Tensor:
    if x.dim() == 4:
        return x.mean((2, 3))
    if x.dim() == 3:
        if kept is None or kept.shape != x.shape[:2]:
            return x.mean(1)
        return x.where(kept[..., None], 0.0).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
    return x


def _norms(difference: Tensor) -> Tensor:
    """Euclidean norms of the last dimension, with gradient 0 (not infinite) at 0."""
    squared = difference.square().sum(-1)
    return squared.where(squared > 0, 1.0).sqrt().where(squared > 0, 0.0)


def _scaled(distances: Tensor, distinct: Tensor) -> Tensor:
    mean = kept_mean(distances, distinct)
    return distances / mean.where(mean > 0, 1.0)
