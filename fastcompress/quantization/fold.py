"""Folding of batch normalisation into the layer before it."""

import torch
from torch import Tensor, nn

__all__ = ["fold_batchnorm"]

_ALLOWED = {nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm), nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm)}


def _check(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor, Tensor, float]:
    """The layer's weight, the norm's statistics and eps, after every check."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"fold_batchnorm: `layer` must be an nn.Conv2d or nn.Linear, got {type(layer).__name__}")
    allowed = next(norms for kind, norms in _ALLOWED.items() if isinstance(layer, kind))
    if not isinstance(norm, allowed):
        names = " or ".join(f"nn.{kind.__name__}" for kind in allowed)
        raise TypeError(
            f"fold_batchnorm: `norm` after an {type(layer).__name__} must be {names}, got {type(norm).__name__}"
        )
    if norm.training:
        raise ValueError(
            "fold_batchnorm: `norm` is in training mode, where it normalises with each batch's own statistics; call model.eval() first"
        )
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "fold_batchnorm: `norm` has no running statistics (track_running_stats=False), so it cannot become a constant; "
            "leave it unfolded"
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
    return layer.weight, norm.running_mean, norm.running_var, norm.eps


@torch.no_grad()
def fold_batchnorm(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias with which `layer` alone computes ``norm(layer(x))``; neither module is changed.

    ``weight' = weight * g`` and ``bias' = (bias - mean) * g + beta`` with ``g = gamma / sqrt(var + eps)`` per output channel, computed
    in float64 and rounded once. A Linear's BatchNorm1d must see ``[N, C]``: on ``[N, L, C]`` it normalises over L.

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
    weight, mean, variance, eps = _check(layer, norm)
    gain = (variance.double() + eps).rsqrt()
    shift = -mean.double()
    if layer.bias is not None:
        shift = layer.bias.double() + shift
    if norm.weight is not None:
        gain = norm.weight.double() * gain
    bias = shift * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    folded = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), bias.to(weight.dtype)
