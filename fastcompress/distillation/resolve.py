"""From what a user writes as losses to loss objects, and from these to the tensors they compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcompress.models.choices import check_choice

from .attention import AttentionTransferLoss
from .feature import FeatureLoss
from .logits import LogitsLoss
from .loss import DistillationLoss
from .matching import automatic_taps
from .probe import Probe
from .relational import RelationalLoss

__all__ = ["LOSSES", "BoundLoss", "bind_losses", "keys_of", "make_losses", "tap_names"]

#: The strings that stand for a loss with its default settings.
LOSSES: dict[str, type[DistillationLoss]] = {
    kind.label: kind for kind in (LogitsLoss, FeatureLoss, AttentionTransferLoss, RelationalLoss)
}


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its key in the result, the modules it compares (None: the logits), and the trained projection."""

    key: str
    loss: DistillationLoss
    student_tap: str | None
    teacher_tap: str | None
    projection: nn.Module | None


def make_losses(
    losses: str | DistillationLoss | Iterable[str | DistillationLoss], temperature: float = 4.0
) -> tuple[DistillationLoss, ...]:
    """Losses by name as loss objects; objects stay what they are.

    Args:
        losses: one or several of ``"logits"``, ``"feature"``, ``"attention"``, ``"relational"`` and loss objects.
        temperature: of the loss called ``"logits"``.

    Raises:
        TypeError, ValueError: there is none, or an unknown name.

    Example:
        >>> make_losses(["logits", FeatureLoss("layer3")], temperature=2.0)
    """
    single = isinstance(losses, (str, DistillationLoss))
    if not single and not isinstance(losses, Iterable):
        raise TypeError(f"Distiller: losses must be names and loss objects, got {losses!r:.80}")
    entries = [losses] if single else list(losses)  # type: ignore[arg-type]  # the two cases of `single`
    if not entries:
        raise ValueError(f"Distiller: losses is empty; give at least one of {', '.join(map(repr, LOSSES))}")
    result: list[DistillationLoss] = []
    for entry in entries:
        if isinstance(entry, DistillationLoss):
            result.append(entry)
            continue
        if not isinstance(entry, str):
            shown = (
                f"the class {entry.__name__}, give {entry.__name__}()" if isinstance(entry, type) else f"{entry!r:.80}"
            )
            raise TypeError(
                f"Distiller: losses holds {shown}; allowed are loss objects and {', '.join(map(repr, LOSSES))}"
            )
        check_choice("Distiller", "losses entry", entry, LOSSES)
        result.append(LogitsLoss(temperature) if entry == LogitsLoss.label else LOSSES[entry]())  # type: ignore[call-arg]
    return tuple(result)


def keys_of(losses: Sequence[DistillationLoss]) -> list[str]:
    """A key for each loss: its label, with a number from the second of a kind on."""
    keys: list[str] = []
    for loss in losses:
        count = sum(1 for earlier in losses[: len(keys)] if earlier.label == loss.label)
        keys.append(loss.label if count == 0 else f"{loss.label}_{count + 1}")
    return keys


def tap_names(losses: Sequence[DistillationLoss]) -> tuple[list[str], list[str]]:
    """The modules that losses name, the student's and the teacher's; those still to be found are left out."""
    named = [pair for pair in map(_named_pair, losses) if pair is not None]
    return [student for student, _ in named], [teacher for _, teacher in named]


def bind_losses(losses: Sequence[DistillationLoss], student: Probe, teacher: Probe, seed: int) -> list[BoundLoss]:
    """Find what each loss compares, check the shapes, and make the projections.

    Args:
        seed: of the projections' start values.

    Raises:
        ValueError: nothing to compare, or shapes that cannot be.
    """
    generator = torch.Generator().manual_seed(seed)
    result: list[BoundLoss] = []
    for key, loss in zip(keys_of(losses), losses, strict=True):
        names: tuple[str | None, str | None] = (None, None)
        pair: tuple[Tensor | None, Tensor | None] = (student.logits, teacher.logits)
        if loss.uses_taps:
            found = _named_pair(loss) or automatic_taps(type(loss).__name__, student, teacher)
            names, pair = found, (student.tensor(found[0]), teacher.tensor(found[1]))
        assert pair[0] is not None
        assert pair[1] is not None
        try:
            projection = loss.make_projection(pair[0], pair[1], generator)
            with torch.no_grad():
                loss(pair[0] if projection is None else projection(pair[0]), pair[1])
        except ValueError as error:
            if loss.uses_taps:
                error.add_note(f"comparing student module {names[0]!r} with teacher module {names[1]!r}")
            raise
        result.append(BoundLoss(key, loss, *names, projection))
    return result


def _named_pair(loss: DistillationLoss) -> tuple[str, str] | None:
    if not loss.uses_taps or loss.student_tap is None:
        return None
    return loss.student_tap, loss.student_tap if loss.teacher_tap is None else loss.teacher_tap
