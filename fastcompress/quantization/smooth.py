"""SmoothQuant: move the outliers of an activation's channels into the weights that read it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .channels import all_finite, check_layer, input_absmax, scale_inputs, scale_outputs

__all__ = ["ChannelAbsMax", "smooth", "smoothing_scales"]


class ChannelAbsMax:
    """Largest finite magnitude of each channel over any number of batches.

    Args:
        channel_dim: the dimension that holds the channels: -1 for a Linear's input, 1 for a Conv2d's.

    Attributes:
        value: float32 ``[channels]``, or None before the first non-empty batch. NaN and infinities are left out.

    Example:
        >>> peak = ChannelAbsMax()
        >>> peak.update(torch.tensor([[1.0, -2.0], [-3.0, 0.5]]))
        >>> peak.value
        tensor([3., 2.])
    """

    def __init__(self, channel_dim: int = -1) -> None:
        self.channel_dim = channel_dim
        self.value: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch into account.

        Raises:
            ValueError: a different number of channels than before.
        """
        if x.numel() == 0:
            return
        rows = x.detach().movedim(self.channel_dim, -1).reshape(-1, x.shape[self.channel_dim])
        peak = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0).abs().amax(dim=0).float()
        if self.value is None:
            self.value = peak
        elif self.value.shape != peak.shape:
            raise ValueError(
                f"ChannelAbsMax.update: `x` has {peak.numel()} channels, earlier batches {self.value.numel()}"
            )
        else:
            self.value = torch.maximum(self.value, peak)


def _check_linears(linears: Sequence[nn.Module], activation_absmax: Tensor, alpha: float) -> list[nn.Linear]:
    if not linears:
        raise ValueError("smooth: `linears` is empty; pass every layer that reads the activation")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"smooth: `alpha` must be in [0, 1], got {alpha}")
    channels = activation_absmax.numel()
    seen: set[int] = set()
    checked: list[nn.Linear] = []
    for index, linear in enumerate(linears):
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"smooth: `linears[{index}]` must be an nn.Linear, got {type(linear).__name__}")
        if linear.in_features != channels or activation_absmax.dim() != 1:
            raise ValueError(
                f"smooth: `activation_absmax` has shape {list(activation_absmax.shape)}, but `linears[{index}]` has "
                f"{linear.in_features} input features; they must read the same activation"
            )
        if id(linear.weight) in seen:
            raise ValueError(
                f"smooth: `linears[{index}]` shares its weight with another one of `linears`; pass it once"
            )
        seen.add(id(linear.weight))
        checked.append(linear)
    if not all_finite([activation_absmax, *(linear.weight for linear in checked)]):
        raise ValueError(
            "smooth: `activation_absmax` and all weights must be finite; repair the model or the calibration data"
        )
    if bool((activation_absmax < 0).any()):
        raise ValueError("smooth: `activation_absmax` must not be negative")
    return checked


@torch.no_grad()
def smoothing_scales(activation_absmax: Tensor, linears: Sequence[nn.Module], alpha: float = 0.5) -> Tensor:
    """By what to divide each channel of the activation: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``.

    Args:
        activation_absmax: ``[channels]``, largest magnitude of each channel in calibration (see ``ChannelAbsMax``).
        linears: every ``nn.Linear`` that reads the activation; ``max|W_j|`` is over all of them.
        alpha: migration strength in [0, 1]: 0 evens out the weights, 1 the activation.

    Returns:
        float32 ``[channels]``, positive; 1 where the activation or the weights are all zero.

    Raises:
        TypeError: not nn.Linear.
        ValueError: lengths that do not match, alpha out of range, NaN/Inf.

    Example:
        >>> smoothing_scales(torch.tensor([4.0, 1.0]), [nn.Linear(2, 3)]).shape
        torch.Size([2])

    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
    (ICML 2023), §4, eq. 4.
    """
    checked = _check_linears(linears, activation_absmax, alpha)
    weight = torch.stack([input_absmax(linear) for linear in checked]).amax(dim=0).double()
    peak = activation_absmax.detach().to(weight.device).double()
    alive = (peak > 0) & (weight > 0)
    peak, weight = torch.where(alive, peak, 1.0), torch.where(alive, weight, 1.0)
    return (peak**alpha / weight ** (1.0 - alpha)).clamp(1e-30, 1e30).float()


def _scaled_previous(previous: nn.Module, scale: Tensor) -> dict[str, Tensor]:
    """The parameters with which `previous` puts out its output divided by `scale`."""
    kind = type(previous).__name__
    weight = getattr(previous, "weight", None)
    if not isinstance(weight, Tensor):
        raise ValueError(
            f"smooth: `previous` ({kind}) has no weight that could absorb the scales (elementwise_affine=False?); "
            "leave it out"
        )
    if not isinstance(previous, nn.Linear) and weight.dim() != 1:
        raise TypeError(
            f"smooth: `previous` must be an nn.Linear or a LayerNorm/RMSNorm over one dimension, got {kind}"
        )
    if weight.shape[0] != scale.numel():
        raise ValueError(
            f"smooth: `previous` ({kind}) has {weight.shape[0]} output channels, but `linears` read {scale.numel()}"
        )
    inverse = 1.0 / scale.double()
    scaled = {"weight": scale_outputs(weight, inverse)}
    bias = getattr(previous, "bias", None)
    if isinstance(bias, Tensor):
        scaled["bias"] = scale_outputs(bias, inverse)
    return scaled


def _is_proportional(previous: nn.Module, channels: int) -> bool:
    """Try in float32 on random data that the output scales with the parameters: some norms use ``1 + weight``."""
    trial = copy.deepcopy(previous).eval().float()
    generator = torch.Generator().manual_seed(0)
    features = previous.in_features if isinstance(previous, nn.Linear) else channels
    device = trial.get_parameter("weight").device
    probe = torch.randn(1, 4, features, generator=generator).to(device)
    factor = torch.linspace(0.5, 2.0, channels, device=device)
    try:
        expected = trial(probe) * factor
        for name in ("weight", "bias"):
            parameter = getattr(trial, name, None)
            if isinstance(parameter, Tensor):
                parameter.copy_(scale_outputs(parameter, factor))
        return torch.allclose(trial(probe), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    except (RuntimeError, TypeError, ValueError):
        return False  # does not even take [1, 4, channels]


@torch.no_grad()
def smooth(previous: nn.Module, linears: Sequence[nn.Module], activation_absmax: Tensor, alpha: float = 0.5) -> Tensor:
    """Divide an activation by ``smoothing_scales`` where it is made, and multiply the weights that read it, in place.

    The network computes the same function (to rounding), if nothing but `linears` reads what `previous` puts out: a
    residual branch taken behind the norm, as in BERT, forbids it. The caller vouches for that.

    Args:
        previous: what makes the activation: ``nn.LayerNorm``, ``nn.RMSNorm``, an ``nn.Linear``, or another norm whose
            output is its one-dimensional weight times something (tested on random data).
        linears: every ``nn.Linear`` that reads the activation.
        activation_absmax: ``[channels]``, see ``ChannelAbsMax``.
        alpha: migration strength in [0, 1].

    Returns:
        The scales, float32 ``[channels]``.

    Raises:
        TypeError: another kind of module.
        ValueError: lengths that do not match, a norm without weight, NaN/Inf, shared weights, scaled weights that
            overflow their dtype. Every layer is untouched then.

    Example:
        >>> norm, linear = nn.LayerNorm(8), nn.Linear(8, 16)
        >>> smooth(norm, [linear], torch.ones(8)).shape
        torch.Size([8])

    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
    (ICML 2023), §4.
    """
    scale = smoothing_scales(activation_absmax, linears, alpha)
    layers = [check_layer("smooth", f"linears[{index}]", linear) for index, linear in enumerate(linears)]
    if any(previous is layer or getattr(previous, "weight", None) is layer.weight for layer in layers):
        raise ValueError("smooth: `previous` is, or shares its weight with, one of `linears`")
    scaled = _scaled_previous(previous, scale)
    after = [scale_inputs(linear, scale) for linear in layers]
    if not all_finite([*scaled.values(), *after]):
        raise ValueError(
            "smooth: the scaled weights overflow their dtype; convert the model to float32 or bfloat16 first"
        )
    # A subclass may have a forward of its own, so only torch's own classes go untested.
    if type(previous) not in (nn.Linear, nn.LayerNorm, nn.RMSNorm) and not _is_proportional(previous, scale.numel()):
        raise TypeError(
            f"smooth: the output of `previous` ({type(previous).__name__}) is not proportional to its weight, so the "
            "scales cannot be folded into it; leave it out"
        )
    for name, tensor in scaled.items():
        getattr(previous, name).copy_(tensor)
    for linear, weight in zip(layers, after, strict=True):
        linear.weight.copy_(weight)
    return scale
