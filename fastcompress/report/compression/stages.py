"""The models between the dense one and the finished one, made from what training left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from fastcompress.conversion import ConvertConfig, finish_model
from fastcompress.graph import freeze
from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.copying import copied
from fastcompress.models.speed import Timer
from fastcompress.nn import PackedLayer
from fastcompress.nn.mask import mask_module, masked, original_weight, remove_mask
from fastcompress.quantization.fake_layer import fake_quantized, take_off

from .data import FINISHED, FROZEN

__all__ = ["CompressedResult", "stage_models"]


class CompressedResult(Protocol):
    """What a report needs of `fastcompress.recipes.CompressionResult`."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def trained(self) -> nn.Module: ...
    @property
    def dense(self) -> nn.Module: ...
    @property
    def history(self) -> Any: ...
    @property
    def dense_score(self) -> float | None: ...
    @property
    def score(self) -> float | None: ...
    @property
    def example_inputs(self) -> Any: ...
    @property
    def recipe(self) -> Any: ...
    @property
    def given_up(self) -> Any: ...


def stage_models(
    result: CompressedResult, timer: Timer, forward_fn: ForwardFn | None
) -> list[tuple[str, bool, Callable[[], nn.Module]]]:
    """The stages in order: a name, whether its score means something, and a function that makes the model.

    Only stages that differ: the float ones where something was pruned, those without fake quantization and without
    sparsity where the finished model has both.
    """
    trained = result.trained
    masks, quantized = bool(masked(trained)), bool(fake_quantized(trained))

    def finish(model: nn.Module) -> nn.Module:
        return finish_model(model, ConvertConfig(), timer, result.example_inputs, forward_fn)[0].eval()

    stages: list[tuple[str, bool, Callable[[], nn.Module]]] = []
    if masks:
        stages.append(("pruned, dense kernels", True, lambda: _without_masks(_float(trained))))
    elif _weights(trained) != _weights(result.dense):
        stages.append(("fewer channels, float", True, lambda: _float(trained)))
    if masks and quantized:
        stages.append(("pruned, sparse float kernels", True, lambda: finish(_float(trained))))
        stages.append(("int8 without sparsity", False, lambda: finish(_filled(trained))))
    stages.append((FINISHED, True, lambda: result.model))
    if forward_fn is None and any(isinstance(module, PackedLayer) for module in result.model.modules()):
        stages.append((FROZEN, True, lambda: freeze(result.model, result.example_inputs)))
    return stages


def _float(trained: nn.Module) -> nn.Module:
    """A copy without fake quantization, masks still on."""
    model = copied(trained, "compression_report").eval()
    for layer in fake_quantized(model).values():
        take_off(layer)
    return model


def _without_masks(model: nn.Module) -> nn.Module:
    for layer in masked(model).values():
        remove_mask(layer)
    return model


def _filled(trained: nn.Module) -> nn.Module:
    """A copy with small numbers in place of the masked weights, for timing only: int8 would skip blocks of zeros."""
    model = copied(trained, "compression_report").eval()
    generator = torch.Generator().manual_seed(0)
    for layer in masked(model).values():
        mask = mask_module(layer)
        assert mask is not None
        kept, weight = mask.mask.clone(), original_weight(layer)
        remove_mask(layer)
        with torch.no_grad():
            noise = torch.rand(weight.shape, generator=generator).to(weight) * weight.abs().max() / 2
            weight.copy_(torch.where(kept, weight, noise))
    return model


def _weights(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
