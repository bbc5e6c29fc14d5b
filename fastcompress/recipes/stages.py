"""What a recipe is made of: frozen descriptions of pruning, distillation and quantization in a training run."""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fastcompress.distillation import DistillationLoss, SelfDistillation, TeacherCache, make_losses
from fastcompress.models.targets import Target
from fastcompress.pruning import PrunerConfig
from fastcompress.quantization import QATConfig

__all__ = ["DENSE_TEACHER", "QAT", "SELF_TEACHER", "Distillation", "Pruning", "Stage", "steps_of"]

#: The teacher that is a frozen copy of the model as `compress` gets it.
DENSE_TEACHER = "dense"

#: In a recipe file, the teacher `SelfDistillation()`.
SELF_TEACHER = "self"


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """A time in epochs as optimizer steps."""
    return round(epochs * steps_per_epoch)


@dataclass(frozen=True)
class Stage(ABC):
    """One technique and its time, in epochs; fractions of an epoch are fine."""

    kind: ClassVar[str] = ""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON, for the record and to recognise a changed recipe."""


@dataclass(frozen=True)
class Pruning(Stage):
    """Prune by a schedule while the model trains.

    Attributes:
        sparsity: pruned fraction at the end, in [0, 1); or target → fraction; of channels with pattern ``"channel"``.
        pattern, criterion, scope, schedule, initial_sparsity, rounds, regrow, regrow_fraction, regrow_decay, targets,
            ignore, round_to, seed: see `fastcompress.PrunerConfig`.
        start, end: epochs between which the sparsity grows. ``end`` None: three quarters of the run.
        frequency: steps between updates of the masks; None: a hundred updates from ``start`` to ``end``.
        rewind: schedule iterative: the epoch to whose weights each round goes back; None: no rewinding.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> fc.recipes.Pruning(0.9, pattern="4x4", schedule="cubic", start=0, end=6)
    """

    kind: ClassVar[str] = "pruning"

    sparsity: float | Mapping[Target, float]
    pattern: str = "unstructured"
    criterion: str = "magnitude"
    scope: str = "local"
    schedule: str = "cubic"
    start: float = 0.0
    end: float | None = None
    frequency: int | None = None
    initial_sparsity: float = 0.0
    rounds: int = 1
    rewind: float | None = None
    regrow: str | None = None
    regrow_fraction: float = 0.3
    regrow_decay: str = "cosine"
    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    round_to: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_times("Pruning", self.start, self.end)
        if self.rewind is not None:
            check_time("Pruning", "rewind", self.rewind)
            if self.rewind > self.start:
                raise ValueError(f"Pruning: rewind must not be after start={self.start:g}, got {self.rewind:g}")
        # Every other field is checked by the configuration that it becomes.
        checked = self.config(steps_per_epoch=1000, epochs=max(4.0, 2.0 * (self.end or self.start)))
        for name in ("targets", "ignore", "pattern", "sparsity"):
            object.__setattr__(self, name, getattr(checked, name))

    @property
    def needs_gradients(self) -> bool:
        """Whether the scores come from the gradients of a step, so that nothing can be pruned before the first."""
        return self.criterion in ("taylor", "movement")

    def ends_at(self, epochs: float) -> float:
        """The epoch of the last update, in a run of so many."""
        if self.schedule in ("one-shot", "constant") and self.end is None and self.regrow is None:
            return self.start
        return max(self.start, 0.75 * epochs) if self.end is None else self.end

    def config(self, steps_per_epoch: int, epochs: float) -> PrunerConfig:
        """The pruner's configuration in a run of so many epochs."""
        start, end = steps_of(self.start, steps_per_epoch), steps_of(self.ends_at(epochs), steps_per_epoch)
        start = max(start, int(self.needs_gradients))
        end = max(start, end)
        return PrunerConfig(
            self.sparsity,
            self.pattern,
            self.criterion,
            self.scope,
            self.schedule,
            start,
            None if self.schedule == "one-shot" else end,
            max(1, (end - start) // 100) if self.frequency is None else self.frequency,
            self.initial_sparsity,
            self.rounds,
            None if self.rewind is None else steps_of(self.rewind, steps_per_epoch),
            self.regrow,
            self.regrow_fraction,
            self.regrow_decay,
            self.targets,
            self.ignore,
            self.round_to,
            self.seed,
        )

    def to_json(self) -> dict[str, Any]:
        config = self.config(1000, 4.0).to_json()
        times = {"start": self.start, "end": self.end, "frequency": self.frequency, "rewind": self.rewind}
        kept = {name: config[name] for name in config if name not in ("start_step", "end_step", "rewind_step")}
        return {"kind": self.kind, **kept, **times}


@dataclass(frozen=True)
class QAT(Stage):
    """Train with fake quantization, so that the model ends in int8 or four-bit kernels.

    Attributes:
        scheme, method, targets, ignore, symmetric_activations, observer_momentum, fold_batchnorm, step_init,
            group_size, scale_dtype: see `fastcompress.QATConfig`.
        start: the epoch from which on weights and activations are rounded.
        freeze_at: the epoch from which on scales and the folded BatchNorms' statistics stay as they are; None: three
            quarters of the way from ``start`` to the end.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> fc.recipes.QAT("W8A8", start=5, freeze_at=7)
    """

    kind: ClassVar[str] = "qat"

    scheme: str = "W8A8"
    start: float = 0.0
    freeze_at: float | None = None
    method: str = "ste"
    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    symmetric_activations: bool = False
    observer_momentum: float = 0.01
    fold_batchnorm: bool = True
    step_init: str = "lsq"
    group_size: int | None = None
    scale_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_time("QAT", "start", self.start)
        if self.freeze_at is not None:
            check_time("QAT", "freeze_at", self.freeze_at)
            if self.freeze_at < self.start:
                raise ValueError(f"QAT: freeze_at must not be before start={self.start:g}, got {self.freeze_at:g}")
        checked = self.config
        for name in ("targets", "ignore"):
            object.__setattr__(self, name, getattr(checked, name))

    @property
    def config(self) -> QATConfig:
        """The configuration of `fastcompress.prepare`."""
        return QATConfig(
            self.scheme,
            self.method,
            self.targets,
            self.ignore,
            self.symmetric_activations,
            self.observer_momentum,
            self.fold_batchnorm,
            self.step_init,
            self.group_size,
            self.scale_dtype,
        )

    def freezes_at(self, epochs: float) -> float:
        """The epoch of freezing, in a run of so many."""
        return self.start + 0.75 * max(0.0, epochs - self.start) if self.freeze_at is None else self.freeze_at

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.config.to_json(), "start": self.start, "freeze_at": self.freeze_at}


@dataclass(frozen=True)
class Distillation(Stage):
    """Add what a teacher knows to the loss.

    Attributes:
        teacher: a trained network; ``"dense"``, a frozen copy of the model before compression; or
            `fastcompress.distillation.SelfDistillation`.
        losses: names (``"logits"``, ``"feature"``, ``"attention"``, ``"relational"``) and loss objects of
            `fastcompress.distillation`.
        temperature: of the loss called ``"logits"``.
        weight: factor of the teacher's losses together.
        task_weight: factor of the run's own loss while this stage is on.
        start, end: epochs between which it is on; ``end`` None: to the end of the run.
        cache: keeps the teacher's outputs on disk.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> fc.recipes.Distillation(teacher, losses=["logits", "feature"], temperature=4.0)
    """

    kind: ClassVar[str] = "distillation"

    teacher: nn.Module | SelfDistillation | str
    losses: Sequence[str | DistillationLoss] = ("logits",)
    temperature: float = 4.0
    weight: float = 1.0
    task_weight: float = 1.0
    start: float = 0.0
    end: float | None = None
    cache: TeacherCache | None = None

    def __post_init__(self) -> None:
        check_times("Distillation", self.start, self.end)
        if not isinstance(self.teacher, (nn.Module, SelfDistillation)) and self.teacher != DENSE_TEACHER:
            raise TypeError(
                f"Distillation: teacher must be a torch.nn.Module, {DENSE_TEACHER!r} (a frozen copy of the model "
                f"before compression) or SelfDistillation(), got {self.teacher!r:.80}"
            )
        losses = (self.losses,) if isinstance(self.losses, (str, DistillationLoss)) else tuple(self.losses)
        object.__setattr__(self, "losses", losses)
        make_losses(losses, self.temperature)
        for name in ("weight", "task_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise ValueError(f"Distillation: {name} must be a finite number, zero or more, got {value!r:.80}")
        if self.cache is not None and not isinstance(self.cache, TeacherCache):
            raise TypeError(f"Distillation: cache must be a TeacherCache or None, got {self.cache!r:.80}")

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("teacher", "cache")}
        values["losses"] = [loss if isinstance(loss, str) else _described(loss) for loss in self.losses]
        teacher = self.teacher
        named = f"{type(teacher).__module__}:{type(teacher).__qualname__}" if isinstance(teacher, nn.Module) else None
        return {
            "kind": self.kind,
            "teacher": named or (teacher if isinstance(teacher, str) else repr(teacher)),
            **values,
        }


def _described(loss: DistillationLoss) -> str:
    """A loss in words that are the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(loss))


def check_time(stage: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a time in epochs."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{stage}: {name} must be a number of epochs, zero or more, got {value!r:.80}")


def check_times(stage: str, start: object, end: object) -> None:
    """Raise unless both are times and in order."""
    check_time(stage, "start", start)
    if end is None:
        return
    check_time(stage, "end", end)
    if end < start:  # type: ignore[operator]  # both were checked
        raise ValueError(f"{stage}: end must not be before start={start:g}, got {end:g}")
