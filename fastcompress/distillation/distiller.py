"""`Distiller`: a teacher, the losses, and their use in any training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn

from .binding import Binding, bind
from .cache import TeacherCache
from .checks import whole_number
from .loss import DistillationLoss
from .masks import kept_positions
from .outputs import logits_of
from .resolve import make_losses
from .self_distillation import SelfDistillation, follow
from .state import load_state, state_of
from .teacher import LOGITS
from .wrappers import unwrapped

__all__ = ["Distiller"]


class Distiller:
    """Adds what a teacher knows to the loss of a training loop.

    The teacher runs in eval mode, without gradients and under the autocast that is active; it is left as it was. The
    student is only watched. A student in DistributedDataParallel or torch.compile is looked at inside these.

    Args:
        teacher: a network on the student's device, or `SelfDistillation`.
        losses: names (``"logits"``, ``"feature"``, ``"attention"``, ``"relational"``) and loss objects.
        cache: keeps the teacher's outputs on disk; not for a teacher that changes.
        temperature: of the loss called ``"logits"``.
        seed: of the projections' start values.

    Raises:
        TypeError, ValueError: a missing teacher, wrong losses, a cache for `SelfDistillation`.

    Example:
        >>> distiller = Distiller(teacher, ["logits", "feature"]).bind(student, batch)
        >>> optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()])
        >>> for batch in loader:
        ...     with distiller.watching():
        ...         output = student(batch[0])
        ...     loss = cross_entropy(output, batch[1]) + distiller.loss(student, batch, output)["total"]
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
        ...     distiller.update(student)
    """

    def __init__(
        self,
        teacher: nn.Module | SelfDistillation,
        losses: str | DistillationLoss | Iterable[str | DistillationLoss] = ("logits",),
        cache: TeacherCache | None = None,
        *,
        temperature: float = 4.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(teacher, (nn.Module, SelfDistillation)):
            raise TypeError(
                f"Distiller: teacher must be a torch.nn.Module or SelfDistillation, got {teacher!r:.80}; give the "
                "trained dense network, or SelfDistillation() where there is none"
            )
        self.losses = make_losses(losses, temperature)
        if cache is not None and not isinstance(cache, TeacherCache):
            raise TypeError(
                f"Distiller: cache must be a TeacherCache or None, got {cache!r:.80}; use TeacherCache(path)"
            )
        if isinstance(teacher, SelfDistillation):
            _check_self(teacher, self.losses, cache)
        self.teacher = teacher
        self.cache = cache
        self.seed = whole_number("Distiller", "seed", seed, 0)
        self._binding: Binding | None = None

    @property
    def teacher_model(self) -> nn.Module | None:
        """The network that teaches: the one given, or the self-teacher of `bind`; None for the student's own layers."""
        if isinstance(self.teacher, nn.Module):
            return self.teacher
        return None if self._binding is None or self._binding.teacher is None else self._binding.teacher.model

    @property
    def compared(self) -> dict[str, tuple[str, str]]:
        """Loss → the modules it compares, (student's, teacher's), those found by themselves too; when bound."""
        result: dict[str, tuple[str, str]] = {}
        for bound in self._bound("compared").losses:
            if bound.student_tap is not None and bound.teacher_tap is not None:
                result[bound.key] = (bound.student_tap, bound.teacher_tap)
        return result

    def bind(self, student: nn.Module, example_batch: Any, forward_fn: ForwardFn | None = None) -> Distiller:
        """Bring the student in: resolve the taps, check all shapes on one batch, create the projections.

        Both networks run once in eval mode and keep their modes, buffers and random numbers. Bind before the optimizer
        is made, and again after the student's layers have been replaced. A compiled student gets hooks that stay until
        `unbind`, as torch.compile overlooks those that come and go; bind before its first call.

        Args:
            student: the network that is trained, as the loop calls it.
            example_batch: a batch like the loop's: a tensor is ``model(x)``, a mapping ``model(**x)``, a tuple or list
                its first element. Batches that follow may have other sizes.
            forward_fn: ``forward_fn(model, batch)`` in place of this protocol, for both networks.

        Returns:
            The distiller itself.

        Raises:
            TypeError, ValueError, RuntimeError: a tap that does not exist or did not run, shapes that cannot be
                compared, no logits, NaN from the teacher, or a teacher that is the student or on another device. After
                an exception an earlier binding still holds.
        """
        if not isinstance(student, nn.Module):
            raise TypeError(f"Distiller.bind: student must be a torch.nn.Module, got {type(student).__name__}")
        binding = bind(student, self.teacher, self.losses, self.cache, example_batch, forward_fn, self.seed)
        self.unbind()
        if binding.compiled:
            binding.taps.install()
        self._binding = binding
        return self

    def unbind(self) -> None:
        """Let go of the student, and take the hooks away that a compiled one has."""
        if self._binding is not None:
            self._binding.taps.remove()
        self._binding = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run the student inside this block, so that its taps are seen; the hooks go with the block."""
        binding = self._bound("watching")
        with binding.taps.recording() if binding.compiled else binding.taps:
            yield

    def loss(self, student: nn.Module, batch: Any, student_output: Any) -> dict[str, Tensor]:
        """The losses of one step.

        Args:
            student: the student, as given to `bind`.
            batch: the batch it has just seen, for the teacher and for masks.
            student_output: what it returned inside `watching`.

        Returns:
            ``"total"``, a scalar with a gradient, and its parts, weighted, by name: ``"logits"``, ``"feature"``,
            ``"feature_2"`` and so on; they add up to the total.

        Raises:
            TypeError, ValueError: another student than bound, no logits, NaN from the teacher, shapes that do not fit.
            RuntimeError: not bound, or the student did not run inside `watching` since the last call.
        """
        binding = self._same_student("loss", student)
        values = binding.taps.values
        for name in binding.taps.names:
            if name not in values:
                raise RuntimeError(
                    f"Distiller.loss: student module {name!r} has not been seen running since the last call; run the "
                    "student inside `with distiller.watching():`, once per call of loss. If it did: the module is not "
                    "called in training mode, or the student was compiled before bind (call torch.compiler.reset())"
                )
        taught = binding.teacher_outputs(batch)
        parts: dict[str, Tensor] = {}
        for bound in binding.losses:
            own = logits_of(student_output, "student") if bound.student_tap is None else values[bound.student_tap]
            target = taught[LOGITS if bound.teacher_tap is None else bound.teacher_tap]
            kept = kept_positions(bound.loss, batch, own)
            parts[bound.key] = bound.loss(own if bound.projection is None else bound.projection(own), target, kept)
        binding.taps.clear()
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Tell a self-teacher that the student has made a step; nothing for other teachers.

        Raises:
            RuntimeError: not bound. ValueError: another student, or its layers have changed since `bind`.
        """
        binding = self._same_student("update", student)
        config = self.teacher
        if not isinstance(config, SelfDistillation) or binding.teacher is None:
            return
        every = 1 if config.source == "ema" else config.every
        if every is not None and (binding.updates + 1) % every == 0:
            follow(binding.teacher.model, binding.student, config.decay if config.source == "ema" else 0.0)
        binding.updates += 1

    def parameters(self) -> Iterator[nn.Parameter]:
        """The projections' parameters, for the optimizer. Raises RuntimeError when not bound."""
        return self._bound("parameters").projections.parameters()

    def average_gradients(self) -> None:
        """With torch.distributed: average the projections' gradients over all ranks, after ``backward``.

        DistributedDataParallel does so for the student; the projections are outside of it. Every rank must call this.
        """
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()

    def state_dict(self) -> dict[str, Tensor]:
        """Projections, and a self-teacher with its count of updates, as a flat dict of tensors."""
        return state_of(self._bound("state_dict"), isinstance(self.teacher, SelfDistillation))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave, after `bind`.

        Raises:
            RuntimeError: not bound. TypeError, ValueError: missing, unknown or misshapen entries; nothing has changed.
        """
        load_state(self._bound("load_state_dict"), isinstance(self.teacher, SelfDistillation), state)

    def _bound(self, method: str) -> Binding:
        if self._binding is None:
            raise RuntimeError(f"Distiller.{method}: no student yet; call bind(student, example_batch) first")
        return self._binding

    def _same_student(self, method: str, student: nn.Module) -> Binding:
        binding = self._bound(method)
        if not isinstance(student, nn.Module):
            raise TypeError(f"Distiller.{method}: student must be a torch.nn.Module, got {type(student).__name__}")
        if unwrapped(student) is not binding.student:
            raise ValueError(f"Distiller.{method}: this is not the student that was bound; call bind for it first")
        return binding


def _check_self(teacher: SelfDistillation, losses: tuple[DistillationLoss, ...], cache: TeacherCache | None) -> None:
    if cache is not None:
        raise ValueError(
            "Distiller: a cache needs a teacher that stays the same; SelfDistillation has none, leave it out"
        )
    if teacher.source != "deeper":
        return
    for loss in losses:
        if not loss.uses_taps or loss.teacher_tap is None or loss.teacher_tap == loss.student_tap:
            raise ValueError(
                f"Distiller: with SelfDistillation('deeper') every loss names two taps, the shallow student_tap and "
                f"the deep teacher_tap; {type(loss).__name__} has {loss.student_tap!r} and {loss.teacher_tap!r}"
            )
