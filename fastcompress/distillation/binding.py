"""Everything that is worked out once, when a teacher and a student are brought together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn

from .cache import TeacherCache
from .loss import DistillationLoss
from .probe import Probe, probe
from .resolve import BoundLoss, bind_losses, tap_names
from .self_distillation import SelfDistillation, copy_of_student
from .taps import Taps
from .teacher import LOGITS, Teacher, check_finite
from .wrappers import is_compiled, unwrapped

__all__ = ["Binding", "bind", "check_devices"]


@dataclass
class Binding:
    """A student, its teacher (None: its own deeper layers), and the losses between them."""

    student: nn.Module
    teacher: Teacher | None
    losses: list[BoundLoss]
    projections: nn.ModuleDict
    taps: Taps
    compiled: bool
    updates: int = 0

    def teacher_outputs(self, batch: Any) -> dict[str, Tensor]:
        """Tap or `LOGITS` → the teacher's tensor, for this batch."""
        if self.teacher is not None:
            check_devices(self.student, self.teacher.model)
            return self.teacher.outputs(batch)
        names = {str(bound.teacher_tap) for bound in self.losses}
        return {name: self.taps[name].detach() for name in names}


def bind(
    student: nn.Module,
    teacher: nn.Module | SelfDistillation,
    losses: Sequence[DistillationLoss],
    cache: TeacherCache | None,
    batch: Any,
    forward_fn: ForwardFn | None,
    seed: int,
) -> Binding:
    """Run both once on ``batch``, find and check what is compared, make projections and the self-teacher.

    Raises:
        TypeError, ValueError, RuntimeError: see `Distiller.bind`; neither model has changed.
    """
    inner = unwrapped(student)
    deeper = isinstance(teacher, SelfDistillation) and teacher.source == "deeper"
    model = teacher if isinstance(teacher, nn.Module) else (inner if deeper else copy_of_student(inner))
    if not deeper:
        _check_apart(inner, unwrapped(model))
        check_devices(inner, unwrapped(model))
    student_names, teacher_names = tap_names(losses)
    logits = any(not loss.uses_taps for loss in losses)
    seen_student = probe(inner, batch, forward_fn, student_names, "student", logits)
    seen_teacher = probe(model, batch, forward_fn, teacher_names, "teacher", logits)
    bound = bind_losses(losses, seen_student, seen_teacher, seed)
    _check_values(bound, seen_teacher)
    watched = [b.student_tap for b in bound if b.student_tap is not None]
    if deeper:
        watched += [b.teacher_tap for b in bound if b.teacher_tap is not None]
        runner = None
    else:
        asked = list(dict.fromkeys(b.teacher_tap for b in bound if b.teacher_tap is not None))
        runner = Teacher(model, asked, logits, forward_fn, cache)
    projections = nn.ModuleDict({b.key: b.projection for b in bound if b.projection is not None})
    return Binding(inner, runner, bound, projections, Taps(inner, watched, whose="student"), is_compiled(student))


def check_devices(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError where student and teacher are on different devices (models over several may overlap)."""
    on_student, on_teacher = ({p.device for p in model.parameters()} for model in (student, teacher))
    if on_student and on_teacher and not on_student & on_teacher:
        s, t = (", ".join(sorted(map(str, devices))) for devices in (on_student, on_teacher))
        raise ValueError(
            f"Distiller: the teacher is on {t}, the student on {s}; move it: teacher.to({s.split(', ')[0]!r})"
        )


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    own = {id(p) for p in student.parameters() if p.requires_grad}
    shared = next((name for name, p in teacher.named_parameters() if id(p) in own), None)
    if student is teacher or shared is not None:
        what = "are the same model" if student is teacher else f"share the parameter {shared!r}, which is being trained"
        raise ValueError(
            f"Distiller: teacher and student {what}; give the teacher its own copy (copy.deepcopy), or use "
            "SelfDistillation()"
        )


def _check_values(losses: Sequence[BoundLoss], teacher: Probe) -> None:
    for bound in losses:
        if bound.teacher_tap is not None:
            check_finite(bound.teacher_tap, teacher.tensor(bound.teacher_tap))
        elif teacher.logits is not None:
            check_finite(LOGITS, teacher.logits)
