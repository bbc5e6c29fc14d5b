"""What the tests of `convert` after quantization-aware training share: trained models, and the integers they imply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import fastcompress as fc
from fastcompress.nn.mask import original_weight
from fastcompress.pruning import mask_of
from fastcompress.quantization import (
    QATConfig,
    freeze_batchnorm,
    freeze_observers,
    set_fake_quant,
)
from tests.quantization.qat_models import METHODS, OPTIMIZERS, images, input_of, train, weight_of

__all__ = ["METHODS", "STATES", "assert_bit_equal", "converted", "held", "integers", "stopwatch", "trained"]

#: In training mode with everything learning; and after freezing.
STATES = ["train", "frozen"]

Array = NDArray[np.float64]


def stopwatch(**seconds: float) -> Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]:
    """Says what the test wants; ``sparse_int8`` stands for "sparse int8"."""
    known = {name.replace("_", " "): value for name, value in seconds.items()}
    return lambda calls: {name: known[name] for name in calls}


def trained(model: nn.Module, method: str, state: str, optimizer: str = "adam") -> nn.Module:
    prepared = fc.prepare(model, QATConfig(method=method), images(), state="off")
    made = OPTIMIZERS[optimizer](prepared)
    set_fake_quant(prepared, "train")
    train(prepared, made)
    if state == "frozen":
        freeze_batchnorm(prepared)
        freeze_observers(prepared)
        train(prepared, made, start=5)
    return prepared


def converted(model: nn.Module) -> Any:
    return fc.convert(model, example_inputs=images(), only_if_faster=False)


def integers(layer: nn.Module, norm: nn.Module | None = None) -> tuple[Array, Array]:
    """s8 weight and scale that the fake quantization on a layer stands for, by the formulas of architecture §1."""
    weight = original_weight(layer).detach().numpy().astype(np.float32)
    mask = mask_of(layer)
    if mask is not None:
        weight = np.where(mask.numpy(), weight, np.float32(0))
    wide = (-1, *[1] * (weight.ndim - 1))
    gone = np.zeros(len(weight), bool)
    if norm is not None:
        gamma, variance = norm.weight.detach().double().numpy(), norm.running_var.double().numpy()
        factor = (gamma * (1 / np.sqrt(variance + norm.eps))).astype(np.float32)
        gone = np.abs(factor) < 2.0**-100
        weight = weight * np.where(gone, np.float32(1), factor).reshape(wide)
    quantizer = weight_of(layer)
    if quantizer.mode == "frozen":
        scale = quantizer.scale.numpy()
    elif quantizer.step is not None:
        scale = quantizer.step.detach().numpy() * quantizer.unit.numpy()
    else:
        scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1), np.float32(2.0**-100)) / np.float32(127)
    weight = np.where(gone.reshape(wide), np.float32(0), weight)
    return np.clip(np.rint(weight / scale.reshape(wide)), -127, 127), scale


def held(layer: Any) -> tuple[Array, Array]:
    """s8 weight and scale inside an int8 layer, dense or block-sparse."""
    c = layer.canonical()
    wide = (-1, *[1] * (len(c.weight_shape) - 1))
    return np.rint(layer.dequantize().float().numpy() / c.weight_scale.numpy().reshape(wide)), c.weight_scale.numpy()


def assert_bit_equal(before: nn.Module, norm: nn.Module | None, after: Any) -> None:
    for found, expected in zip(held(after), integers(before, norm), strict=True):
        assert np.array_equal(found, expected)
    scale, zero_point = input_of(before).qparams()
    assert (after.input_scale, after.input_zero_point) == (float(scale), int(zero_point))
    assert after.input_mode == "static"
