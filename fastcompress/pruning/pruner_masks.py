"""The masks of a `Pruner`'s layers at one step; nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mask_updates import narrowed, narrowed_together, regrown
from .pruner_config import PrunerConfig
from .trained_layer import TrainedLayer

__all__ = ["narrowed_masks", "regrown_masks"]


@torch.no_grad()
def narrowed_masks(
    layers: Sequence[TrainedLayer], scores: Sequence[Tensor], config: PrunerConfig, step: int
) -> list[Tensor]:
    """Each layer's mask, within the one it has, at the sparsity that the schedule wants after ``step``.

    Raises:
        ValueError: a layer's scores hold NaN; the message names it.
    """
    ordered = [(layer.in_order(score), layer.in_order(layer.mask)) for layer, score in zip(layers, scores, strict=True)]
    if config.scope == "global":
        masks = _together(ordered, config, step)
    else:
        masks = []
        for layer, (score, mask) in zip(layers, ordered, strict=True):
            try:
                masks.append(narrowed(score, mask, config.parsed, config.sparsity_at(step, layer.sparsity)))
            except ValueError as error:
                raise ValueError(f"Pruner.step: layer {layer.name!r}: {error}") from None
    return [layer.out_of_order(mask) for layer, mask in zip(layers, masks, strict=True)]


def _together(ordered: Sequence[tuple[Tensor, Tensor]], config: PrunerConfig, step: int) -> list[Tensor]:
    try:
        return narrowed_together(
            [score for score, _ in ordered], [mask for _, mask in ordered], config.parsed, config.sparsity_at(step)
        )
    except ValueError as error:
        raise ValueError(f"Pruner.step: {error}") from None


@torch.no_grad()
def regrown_masks(
    layers: Sequence[TrainedLayer],
    scores: Sequence[Tensor],
    gradients: Sequence[Tensor],
    masks: Sequence[Tensor],
    config: PrunerConfig,
    share: float,
) -> list[Tensor]:
    """``masks`` with the fraction ``share`` of each layer's kept weights moved; see `regrown`."""
    result = []
    for layer, *tensors in zip(layers, scores, gradients, masks, strict=True):
        score, gradient, mask = (layer.in_order(tensor) for tensor in tensors)
        result.append(layer.out_of_order(regrown(score, gradient, mask, config.parsed, share)))
    return result
