"""Which modules of teacher and student are compared where nobody has said so."""

from __future__ import annotations

from collections.abc import Callable

from .probe import Probe, Seen

__all__ = ["automatic_taps"]


def automatic_taps(owner: str, student: Probe, teacher: Probe) -> tuple[str, str]:
    """The last matching features of both models, as module names (student's, teacher's).

    The rule: of the modules that ran, in the order in which they ended, take the last one whose output is a feature
    map, [batch, channels, height, width] with more than one pixel or [batch, tokens, features] with more than one
    token; in a classifier this is what goes into the pooling. Where one model has no maps, or the two end in different
    kinds, the last vectors [batch, features] are taken, what goes into the classifier. Dropout, the model's own output
    and whatever is as wide as it (and of as many dimensions) are never taken.

    Args:
        owner: the loss, for the message.
        student: forward of the student on the example batch.
        teacher: forward of the teacher on it.

    Raises:
        ValueError: nothing matches; the message lists what both models have.
    """
    last = (_last(student, _is_map), _last(teacher, _is_map))
    if last[0] is not None and last[1] is not None and len(last[0].shape) == len(last[1].shape):
        return last[0].name, last[1].name
    vectors = (_last(student, _is_vector), _last(teacher, _is_vector))
    if vectors[0] is not None and vectors[1] is not None:
        return vectors[0].name, vectors[1].name
    raise ValueError(
        f"{owner}: found no matching features: the student has {_described(student)}, the teacher "
        f"{_described(teacher)}; name the modules: {owner}(student_tap=..., teacher_tap=...)"
    )


def _is_map(shape: tuple[int, ...]) -> bool:
    return (len(shape) == 4 and shape[2] * shape[3] > 1) or (len(shape) == 3 and shape[1] > 1)


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2


def _last(probe: Probe, wanted: Callable[[tuple[int, ...]], bool]) -> Seen | None:
    batch = None if probe.logits is None or probe.logits.dim() == 0 else probe.logits.shape[0]
    for seen in reversed(probe.seen):
        if not seen.is_output and wanted(seen.shape) and (batch is None or seen.shape[0] == batch):
            return seen
    return None


def _described(probe: Probe) -> str:
    parts = []
    for what, wanted in (("map", _is_map), ("vector", _is_vector)):
        seen = _last(probe, wanted)
        parts.append(f"no {what}" if seen is None else f"{what} {seen.name!r} {list(seen.shape)}")
    return " and ".join(parts)
