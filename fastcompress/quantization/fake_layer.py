"""Fake quantization on one layer: putting it on, finding it, and taking it off."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastcompress.nn.mask import original_weight
from fastcompress.nn.parametrization import drop_step, weight_steps

from .fake_dynamic import DynamicInputFakeQuantize
from .fake_input import InputFakeQuantize
from .fake_weight import WeightFakeQuantize

__all__ = [
    "INPUT_NAME",
    "InputQuantizer",
    "fake_quantized",
    "float_weight",
    "input_quantizer",
    "put_on",
    "take_off",
    "weight_quantizer",
]

#: What rounds a layer's input.
InputQuantizer = InputFakeQuantize | DynamicInputFakeQuantize

#: The submodule of a layer that quantizes its input.
INPUT_NAME = "input_fake_quant"


def before_forward(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The forward pre-hook of a layer with fake quantization: hold its norm if that is frozen, quantize its input.

    A plain function, so that modules with it can be copied.
    """
    weight = weight_quantizer(module)
    if weight is not None and weight.holds_norm and weight.norm is not None:
        weight.norm.training = False  # model.train() has set it
    quantizer = input_quantizer(module)
    if quantizer is None:
        return args, kwargs
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    if "input" in kwargs:
        return args, {**kwargs, "input": quantizer(kwargs["input"])}
    return args, kwargs


def weight_quantizer(module: nn.Module) -> WeightFakeQuantize | None:
    """The fake-quantizer on ``module``'s weight, or None."""
    return next((step for step in weight_steps(module) if isinstance(step, WeightFakeQuantize)), None)


def input_quantizer(module: nn.Module) -> InputQuantizer | None:
    """The fake-quantizer in front of ``module``, or None where inputs are not rounded."""
    return cast(InputQuantizer | None, getattr(module, INPUT_NAME, None))


def fake_quantized(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module, of every layer in ``model`` that `prepare` put fake quantization on.

    Example:
        >>> list(fake_quantized(fc.prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))))
        ['0']
    """
    return {name: module for name, module in model.named_modules() if weight_quantizer(module) is not None}


def float_weight(module: nn.Module) -> Tensor:
    """The weight of a layer as its fake-quantizer gets it: with a mask's zeros, not rounded."""
    weight = original_weight(module)
    for step in weight_steps(module):
        if isinstance(step, WeightFakeQuantize):
            break
        weight = step(weight)
    return weight


def put_on(module: nn.Module, weight: WeightFakeQuantize, input: InputQuantizer | None) -> None:
    """Add the quantizers (in state off) to a layer in place; its parameters stay the same objects."""
    training = module.training
    with torch.no_grad():
        parametrize.register_parametrization(module, "weight", weight)
    cast(nn.ModuleDict, module.parametrizations).train(training)
    if input is not None:
        module.add_module(INPUT_NAME, input.train(training))
    module.register_forward_pre_hook(before_forward, with_kwargs=True)


def take_off(module: nn.Module) -> None:
    """Take the quantizers off a layer in place; its float weight, and a mask, stay."""
    weight = weight_quantizer(module)
    if weight is None:
        return
    drop_step(module, weight)
    if input_quantizer(module) is not None:
        delattr(module, INPUT_NAME)
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is before_forward]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
