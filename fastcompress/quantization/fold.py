"""Folding of batch normalisation into the layer before it."""

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["fold_batchnorm"]

_ALLOWED = {nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm), nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm)}


def _check(layer: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d | nn.Linear, nn.BatchNorm2d]:
    """Both modules, typed, after every check; BatchNorm2d stands for any of the norms."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"fold_batchnorm: `layer` must be an nn.Conv2d or nn.Linear, got {type(layer).__name__}")
    allowed = next(norms for kind, norms in _ALLOWED.items() if isinstance(layer, kind))
    if not isinstance(norm, allowed):
        names = " or ".join(f"nn.{kind.__name__}" for kind in allowed)
        raise TypeError(
            f"fold_batchnorm: `norm` behind {type(layer).__name__} must be {names}, got {type(norm).__name__}"
        )
    if norm.training:
        raise ValueError(
            "fold_batchnorm: `norm` is in training mode, where it normalises with each batch's own statistics; "
            "call model.eval() first"
        )
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "fold_batchnorm: `norm` has no running statistics (track_running_stats=False), so it cannot become "
            "constant; leave it unfolded"
        )
    if layer.weight.shape[0] != norm.num_features:
        raise ValueError(
            f"fold_batchnorm: `layer` has {layer.weight.shape[0]} output channels but `norm` has {norm.num_features}; "
            "they do not follow each other"
        )
    if not bool((norm.running_var.double() + norm.eps > 0).all()):
        raise ValueError(
            "fold_batchnorm: `norm.running_var` + eps must be positive in every channel; the statistics are damaged"
        )
    return layer, cast(nn.BatchNorm2d, norm)


@torch.no_grad()
def fold_batchnorm(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias with which `layer` alone computes ``norm(layer(x))``; neither module is changed.

    ``weight' = weight * g`` and ``bias' = (bias - mean) * g + beta`` with ``g = gamma / sqrt(var + eps)`` per output
    channel, computed in float64 and rounded once. A Linear's BatchNorm1d must see ``[N, C]``: on ``[N, L, C]`` it
    normalises over L.

    Args:
        layer: ``nn.Conv2d`` or ``nn.Linear``, with or without bias.
        norm: the ``nn.BatchNorm2d`` / ``nn.BatchNorm1d`` / ``nn.SyncBatchNorm`` right behind it, in eval mode, with or
            without affine parameters.

    Returns:
        ``(weight, bias)``: new tensors with the layer's dtype and device; weight of the layer's shape, bias ``[out]``.

    Raises:
        TypeError: another kind of module.
        ValueError: `norm` in training mode or without running statistics, or a different number of channels.

    Example:
        >>> weight, bias = fold_batchnorm(nn.Conv2d(3, 8, 3, bias=False).eval(), nn.BatchNorm2d(8).eval())
        >>> weight.shape, bias.shape
        (torch.Size([8, 3, 3, 3]), torch.Size([8]))

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (CVPR 2018), §3.2.
    """
    layer, norm = _check(layer, norm)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    gain = (variance.double() + norm.eps).rsqrt()
    if norm.affine:
        gain = norm.weight.double() * gain
    bias = -mean.double() * gain
    if layer.bias is not None:
        bias = (layer.bias.double() - mean.double()) * gain
    if norm.affine:
        bias = bias + norm.bias.double()
    weight = layer.weight
    folded = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), bias.to(weight.dtype)
