"""A student that is taught by itself: by an average of its weights, by its past, or by its own deeper layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcompress.models.choices import check_choice

from .checks import number, whole_number

__all__ = ["SelfDistillation", "copy_of_student", "follow"]


@dataclass(frozen=True)
class SelfDistillation:
    """Takes the teacher's place in `Distiller` where there is no larger network.

    Args:
        source: ``"ema"``: the teacher is the exponential moving average of the student's parameters,
            ``decay · teacher + (1 - decay) · student`` at each `Distiller.update`; buffers are copied.
            ``"snapshot"``: it is the student as it was at `Distiller.bind`, taken anew every ``every`` updates.
            ``"deeper"``: the student's own deeper modules teach the shallower ones; every loss names both taps.
        decay: of the average, in [0, 1].
        every: updates from one snapshot to the next; None keeps the first.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> Distiller(SelfDistillation("ema", decay=0.999), ["logits"])
        >>> Distiller(SelfDistillation("deeper"), [FeatureLoss("layer2", "layer4"), FeatureLoss("layer3", "layer4")])

    Source: Tarvainen and Valpola 2017, "Mean teachers are better role models", section 2; snapshots: Furlanello et al.
    2018, "Born-Again Neural Networks", section 3; deeper layers: Zhang et al. 2019, "Be Your Own Teacher", section 3
    (the feature term).
    """

    source: str = "ema"
    decay: float = 0.999
    every: int | None = None

    def __post_init__(self) -> None:
        owner = "SelfDistillation"
        check_choice(owner, "source", self.source, ("ema", "snapshot", "deeper"))
        object.__setattr__(self, "decay", number(owner, "decay", self.decay, high=1.0))
        if self.every is not None:
            whole_number(owner, "every", self.every, 1)
            if self.source != "snapshot":
                raise ValueError(
                    f"{owner}: every belongs to source 'snapshot', source is {self.source!r}; leave it out"
                )


def copy_of_student(student: nn.Module) -> nn.Module:
    """A copy of ``student`` that needs no gradients.

    Raises:
        TypeError: it cannot be copied.
    """
    try:
        teacher = copy.deepcopy(student)
    except Exception as error:
        raise TypeError(
            f"SelfDistillation: the student ({type(student).__name__}) cannot be copied ({type(error).__name__}: "
            f"{error}); pass a teacher of your own making"
        ) from error
    return teacher.requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher's parameters towards the student's, ``decay`` of the old ones remaining; copy the buffers.

    Raises:
        ValueError: the two no longer have the same tensors; nothing has changed then.
    """
    pairs = _pairs(teacher, student)
    for old, new, averaged in pairs:
        if averaged and old.is_floating_point():
            old.mul_(decay).add_(new.to(old.device), alpha=1.0 - decay)
        else:
            old.copy_(new)


def _pairs(teacher: nn.Module, student: nn.Module) -> list[tuple[Tensor, Tensor, bool]]:
    result: list[tuple[Tensor, Tensor, bool]] = []
    for kind, averaged in (("named_parameters", True), ("named_buffers", False)):
        old, new = dict(getattr(teacher, kind)()), dict(getattr(student, kind)())
        changed = sorted(old.keys() ^ new.keys()) or [n for n in old if old[n].shape != new[n].shape]
        if changed:
            raise ValueError(
                f"SelfDistillation: the student's layers changed since bind ({changed[0]!r} is not what it was); after "
                "pruning channels, adding fake quantization and the like, bind again"
            )
        result += [(old[name], new[name], averaged) for name in old]
    return result
