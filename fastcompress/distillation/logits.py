"""Distillation of class probabilities, softened by a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .checks import number
from .loss import DistillationLoss, kept_mean

__all__ = ["LogitsLoss"]


@dataclass(frozen=True)
class LogitsLoss(DistillationLoss):
    """``T² · KL(softmax(teacher / T) ‖ softmax(student / T))``, the mean over samples (and positions).

    The factor T² keeps the gradient's size independent of the temperature. Classes to which the teacher gives
    probability 0 (a logit of -inf) add nothing.

    Args:
        temperature: T, above 0; larger ones bring out the small probabilities.
        weight: factor of the loss, at least 0.
        mask: for logits of several positions: the entry of a dict batch that says which count (nonzero counts). None
            takes ``"attention_mask"`` where the batch has one that fits.
        ignore_index: with ``mask="labels"`` and the like: all positions count except those of this value.

    Logits are [batch, classes], [batch, tokens, classes] or [batch, classes, height, width].

    Raises:
        TypeError, ValueError: a wrong field; on a call, shapes that differ.

    Example:
        >>> LogitsLoss(temperature=2.0)(student(x), teacher(x))

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """

    temperature: float = 4.0
    weight: float = 1.0
    mask: str | None = None
    ignore_index: int | None = None

    label: ClassVar[str] = "logits"
    uses_taps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", number("LogitsLoss", "temperature", self.temperature, above=True))
        self._check_fields()
        if self.ignore_index is None:
            return
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"LogitsLoss: ignore_index must be an int or None, got {self.ignore_index!r:.80}")
        if self.mask is None:
            raise ValueError("LogitsLoss: ignore_index needs mask, the entry of the batch it is looked up in: 'labels'")

    def check(self, student: Tensor, teacher: Tensor) -> None:
        if student.shape != teacher.shape or student.dim() not in (2, 3, 4):
            raise ValueError(
                f"LogitsLoss: the student's logits have shape {list(student.shape)}, the teacher's "
                f"{list(teacher.shape)}; both must be the same, [batch, classes], [batch, tokens, classes] or "
                "[batch, classes, height, width]: teacher and student need the same classes in the same order"
            )

    def value(self, student: Tensor, teacher: Tensor, kept: Tensor | None) -> Tensor:
        dim = 1 if student.dim() == 4 else -1
        log_p = torch.log_softmax(teacher / self.temperature, dim)
        log_q = torch.log_softmax(student / self.temperature, dim)
        p = log_p.exp()
        # At p = 0 the term is 0, but 0 · (-inf) would be NaN, in the value and in the gradient.
        log_ratio = torch.where(p > 0, log_p, 0.0) - torch.where(p > 0, log_q, 0.0)
        divergence = (p * log_ratio).sum(dim)
        return self.temperature**2 * kept_mean(divergence, kept)

    def positions(self, student: Tensor) -> tuple[int, ...] | None:
        shape = tuple(student.shape)
        return (shape[0], *shape[2:]) if student.dim() == 4 else shape[:-1]
