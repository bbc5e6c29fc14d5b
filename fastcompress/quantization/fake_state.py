"""Switching fake quantization on and off, and freezing what it has learned."""

from __future__ import annotations

import logging

from torch import nn

from fastcompress.models.choices import check_choice

from .fake_input import InputFakeQuantize
from .fake_layer import InputQuantizer, fake_quantized, float_weight, input_quantizer, weight_quantizer
from .fake_quantizer import STATES
from .fake_weight import WeightFakeQuantize

__all__ = ["freeze_batchnorm", "freeze_observers", "set_fake_quant"]

logger = logging.getLogger("fastcompress")


def set_fake_quant(model: nn.Module, state: str) -> None:
    """Put all fake quantization in a model into one state.

    Parameters and buffers stay the same objects, so optimizers and gradient hooks keep working.

    Args:
        model: what `prepare` returned, or a model that contains it.
        state: ``"off"``: the float model. ``"observe"``: it still computes as a float model, observers watch the inputs
            (in training mode). ``"train"``: weights and inputs are rounded; observers or learned scales go on learning.
            ``"frozen"``: rounded with the scales and zero points of now, which no longer change. A layer whose inputs
            were never seen keeps them unrounded when frozen, which is logged. (Inputs of four-bit layers are never
            rounded, or by the row, where there is nothing to see before.)

    Raises:
        TypeError: ``model`` is no module or ``state`` no string.
        ValueError: an unknown state, a model without fake quantization, or ``"frozen"`` before any input was seen.
            Nothing has changed then.

    Example:
        >>> model = fc.prepare(model, "W8A8", example_inputs=batch, state="off")
        >>> set_fake_quant(model, "train")  # some epochs later

    Source: Krishnamoorthi (arXiv 1806.08342, 2018), §3.2: it starts late and freezes before the end.
    """
    check_choice("set_fake_quant", "state", state, STATES)
    layers = _layers(model, "set_fake_quant")
    if state == "frozen":
        _check_seen(layers)
    for layer in layers.values():
        weight, input = _quantizers(layer)
        weight.set_mode(state, float_weight(layer))
        if input is not None:
            input.set_mode(state)


def freeze_observers(model: nn.Module) -> None:
    """Fix every scale and zero point as they are now; the same as ``set_fake_quant(model, "frozen")``.

    Raises:
        TypeError, ValueError: as there.
    """
    set_fake_quant(model, "frozen")


def freeze_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm that is folded into a layer use its running statistics from now on.

    It stays in eval mode when ``model.train()`` is called, is part of the ``state_dict``, and cannot be taken back. Its
    scale and shift are trained on. From here on, with frozen scales, the model computes in training what the converted
    one will. Norms that no layer folds are left alone; without any this does nothing.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: a model without fake quantization.

    Source: Krishnamoorthi (arXiv 1806.08342, 2018), §3.2.2.
    """
    for layer in _layers(model, "freeze_batchnorm").values():
        _quantizers(layer)[0].hold_norm()


def _layers(model: nn.Module, function: str) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")
    layers = fake_quantized(model)
    if not layers:
        raise ValueError(
            f"{function}: {type(model).__name__} has no fake quantization; call fastcompress.prepare first"
        )
    return layers


def _quantizers(layer: nn.Module) -> tuple[WeightFakeQuantize, InputQuantizer | None]:
    weight = weight_quantizer(layer)
    assert weight is not None
    return weight, input_quantizer(layer)


def _check_seen(layers: dict[str, nn.Module]) -> None:
    unseen = [
        name
        for name, layer in layers.items()
        if isinstance(found := input_quantizer(layer), InputFakeQuantize) and not found.observed
    ]
    if unseen and len(unseen) == len(layers):
        raise ValueError(
            "set_fake_quant: state 'frozen' fixes the input ranges, but no layer has seen an input; train in state "
            "'observe' or 'train' first, or pass calibration_data to prepare"
        )
    if unseen:
        logger.warning("set_fake_quant: these layers saw no input, which stays unrounded: %s", ", ".join(unseen))
