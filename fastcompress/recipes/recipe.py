"""A recipe: stages that run together, checked against each other, and cut where the model changes its shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .stages import QAT, Distillation, Pruning, Stage, steps_of

__all__ = ["Phase", "check_recipe", "check_steps", "phases_of"]


@dataclass(frozen=True)
class Phase:
    """A part of the run in which the model keeps its parameters.

    Attributes:
        start, end: epochs.
        stages: those that are set up in it.
    """

    start: float
    end: float
    stages: tuple[Stage, ...]


def check_recipe(stages: Stage | Iterable[Stage], epochs: float) -> tuple[Stage, ...]:
    """The stages of a run of ``epochs`` epochs, if they go together.

    Raises:
        TypeError, ValueError: something else than a stage, a time after the end of the run, or stages that
            exclude each other.
    """
    listed = (stages,) if isinstance(stages, Stage) else tuple(stages)
    for stage in listed:
        if not isinstance(stage, Stage):
            raise TypeError(
                f"compress: a recipe consists of Pruning, Distillation and QAT from fastcompress.recipes, got "
                f"{type(stage).__name__}; a YAML file is read by fastcompress.recipes.load_recipe(path)"
            )
    for stage in listed:
        _check_inside(stage, epochs)
    _check_single(listed)
    _check_channels(listed, epochs)
    return listed


def check_steps(stages: Iterable[Stage], steps_per_epoch: int, epochs: float) -> None:
    """Raise where a stage would have no step, once it is known how many steps there are.

    Raises:
        ValueError: see above.
    """
    total = steps_of(epochs, steps_per_epoch)
    for stage in stages:
        if not isinstance(stage, (QAT, Distillation)):
            continue
        end = stage.end if isinstance(stage, Distillation) and stage.end is not None else epochs
        first, last = steps_of(stage.start, steps_per_epoch), min(total, steps_of(end, steps_per_epoch))
        if first >= last:
            raise ValueError(
                f"compress: {type(stage).__name__} from epoch {stage.start:g} to {min(end, epochs):g} has no optimizer "
                f"step, as an epoch has {steps_per_epoch}; start it earlier"
            )


def phases_of(stages: tuple[Stage, ...], epochs: float) -> tuple[Phase, ...]:
    """The run cut where channels are removed: what comes after trains a smaller model with parameters of its own."""
    channels = [s for s in stages if isinstance(s, Pruning) and s.pattern == "channel"]
    if not channels:
        return (Phase(0.0, epochs, stages),)
    cut = _cut(channels[0], epochs)
    later = tuple(s for s in stages if s is not channels[0])
    first = tuple(s for s in later if isinstance(s, Distillation) and s.start < cut)
    return (Phase(0.0, cut, (*first, channels[0])), Phase(cut, epochs, later))


def _cut(channels: Pruning, epochs: float) -> float:
    """When channels are removed: at the end of the epoch in which the last ones were masked."""
    return min(epochs, float(math.ceil(channels.ends_at(epochs))))


def _check_inside(stage: Stage, epochs: float) -> None:
    name = type(stage).__name__
    times = {"start": stage.start} if isinstance(stage, (Pruning, QAT, Distillation)) else {}
    if isinstance(stage, Pruning):
        times["end"] = stage.ends_at(epochs)
    if isinstance(stage, QAT):
        times["freeze_at"] = stage.freezes_at(epochs)
    for field, time in times.items():
        if time > epochs or (field == "start" and time >= epochs):
            raise ValueError(
                f"compress: {name}: {field}={time:g} is after the end of the run, which has {epochs:g} epochs"
            )


def _check_single(stages: tuple[Stage, ...]) -> None:
    for kind in (QAT, Distillation):
        found = [stage for stage in stages if isinstance(stage, kind)]
        if len(found) > 1:
            raise ValueError(
                f"compress: the recipe has {len(found)} {kind.__name__} stages, which would overlap; use one"
                + (", its losses add up" if kind is Distillation else "")
            )
    untargeted = [s for s in stages if isinstance(s, Pruning) and s.targets is None and s.pattern != "channel"]
    masking = [s for s in stages if isinstance(s, Pruning) and s.pattern != "channel"]
    if untargeted and len(masking) > 1:
        raise ValueError(
            f"compress: {len(masking)} Pruning stages overlap, as {len(untargeted)} of them prune all layers; give "
            "each targets of its own"
        )


def _check_channels(stages: tuple[Stage, ...], epochs: float) -> None:
    channels = [s for s in stages if isinstance(s, Pruning) and s.pattern == "channel"]
    if len(channels) > 1:
        raise ValueError("compress: the recipe removes channels twice; use one Pruning stage with pattern 'channel'")
    if not channels:
        return
    cut = _cut(channels[0], epochs)
    for stage in stages:
        if stage is not channels[0] and isinstance(stage, (Pruning, QAT)) and stage.start < cut:
            raise ValueError(
                f"compress: {type(stage).__name__} starts at epoch {stage.start:g}, but pattern 'channel' removes "
                f"channels until {cut:g}, and masks and fake quantization cannot be on layers that change their shape; "
                f"start it at {cut:g} or later"
            )
        if stage is not channels[0] and isinstance(stage, Pruning) and stage.rewind is not None and stage.rewind < cut:
            raise ValueError(
                f"compress: Pruning: rewind={stage.rewind:g} goes back to weights from before pattern 'channel' has "
                f"removed channels at epoch {cut:g}; rewind to {cut:g} or later"
            )
