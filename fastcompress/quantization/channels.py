"""A layer's weight seen by input or output channel, whatever its groups."""

import torch
from torch import Tensor, nn

__all__ = [
    "Layer",
    "all_finite",
    "by_input",
    "check_layer",
    "in_channels",
    "input_absmax",
    "out_channels",
    "output_absmax",
    "scale_inputs",
    "scale_outputs",
]


#: What the algorithms on weights understand.
Layer = nn.Linear | nn.Conv2d


def check_layer(function: str, argument: str, layer: object) -> Layer:
    """`layer`, if it is an nn.Linear or nn.Conv2d with a floating-point weight; TypeError otherwise."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise TypeError(f"{function}: `{argument}` must be an nn.Linear or nn.Conv2d, got {type(layer).__name__}")
    if not layer.weight.is_floating_point():
        raise TypeError(f"{function}: `{argument}` must have a floating-point weight, got {layer.weight.dtype}")
    return layer


def in_channels(layer: Layer) -> int:
    """Number of input channels or features."""
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def out_channels(layer: Layer) -> int:
    """Number of output channels or features."""
    return layer.weight.shape[0]


def by_input(layer: Layer) -> Tensor:
    """The weight as ``[groups, out / groups, in / groups, kh * kw]``: dimensions 0 and 2 are the input channel."""
    weight = layer.weight
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def input_absmax(layer: Layer) -> Tensor:
    """float32 ``[in]``: largest magnitude of the weights that each input channel meets."""
    return by_input(layer).float().abs().amax(dim=(1, 3)).flatten()


def output_absmax(layer: Layer) -> Tensor:
    """float32 ``[out]``: largest magnitude of each output channel's weights."""
    return layer.weight.detach().float().flatten(1).abs().amax(dim=1)


def scale_inputs(layer: Layer, factor: Tensor) -> Tensor:
    """The weight with input channel j multiplied by ``factor[j]`` (in float64, rounded once), as a new tensor."""
    view = by_input(layer)
    scaled = view.double() * factor.double().reshape(view.shape[0], 1, view.shape[2], 1)
    return scaled.reshape(layer.weight.shape).to(layer.weight.dtype)


def scale_outputs(tensor: Tensor, factor: Tensor) -> Tensor:
    """`tensor` ``[out, ...]`` with channel i times ``factor[i]`` (in float64, rounded once), as a new tensor."""
    wide = factor.double().reshape(-1, *[1] * (tensor.dim() - 1))
    return (tensor.detach().double() * wide).to(tensor.dtype)


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
