"""Finishing whatever a model carries: fake quantization first, then the masks that are left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.speed import Timer
from fastcompress.record import LayerDecision

from .convert import ConvertConfig, convert_model
from .trained import convert_trained

__all__ = ["finish_model"]


def finish_model(
    model: nn.Module,
    config: ConvertConfig,
    timer: Timer,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    progress: bool | None = None,
) -> tuple[nn.Module, list[LayerDecision], tuple[str, ...]]:
    """Convert ``model`` in place; after an exception the caller puts it back together (`undone_on_error`).

    Returns:
        The model (another object only where the model itself is a single layer), what became of each layer, and what
        was converted: schemes such as ``"W8A8"``, ``"sparse"``, several, or nothing.
    """
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    model, trained, schemes = convert_trained(model, config, timer, example, forward_fn, progress)
    model, pruned = convert_model(model, config, timer, example, forward_fn, progress)
    parts = (*schemes, "sparse") if pruned else schemes
    earlier = {decision.name: decision for decision in trained}
    later = {decision.name: decision for decision in pruned}
    for name in earlier.keys() & later.keys():
        both = f"{earlier[name].reason}; {later[name].reason}"
        later[name] = replace(later[name], reason=both)
    decisions = sorted((earlier | later).values(), key=lambda decision: places[decision.name])
    return model, decisions, parts
