"""The record of a model whose masks change while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from .pruner_config import PrunerConfig
from .record import PRUNING_ATTRIBUTE, PruneRecord, pruning_of
from .trained_layer import TrainedLayer

__all__ = ["update_record"]


def update_record(model: nn.Module, layers: Sequence[TrainedLayer], config: PrunerConfig) -> None:
    """Write the sparsity that each layer has now into the model's `PruneRecord`."""
    record = pruning_of(model)
    if record is None:
        return
    masked = {
        candidate.name: 1.0 - int(layer.mask.sum()) / layer.mask.numel()
        for layer in layers
        for candidate in (layer.layer.candidate, *layer.layer.tied)
    }
    decisions = tuple(
        dataclasses.replace(decision, achieved=masked[decision.name], retained=None)
        if decision.name in masked
        else decision
        for decision in record
    )
    setattr(model, PRUNING_ATTRIBUTE, PruneRecord(config.to_json(), decisions))
