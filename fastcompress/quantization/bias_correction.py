"""Bias correction: remove the shift that quantization gives a layer's mean output."""

import torch
from torch import Tensor, nn

from .channels import by_input, check_layer, in_channels

__all__ = ["ChannelMean", "corrected_bias", "expected_output_shift"]


class ChannelMean:
    """Mean of each channel over any number of batches, accumulated in float64.

    Args:
        channel_dim: the dimension that holds the channels: -1 behind a Linear, 1 (or -3) behind a Conv2d.

    Example:
        >>> mean = ChannelMean()
        >>> mean.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> mean.value
        tensor([2., 3.], dtype=torch.float64)
    """

    def __init__(self, channel_dim: int = -1) -> None:
        self.channel_dim = channel_dim
        self._sum: Tensor | None = None
        self._count = 0

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch into account; a row (all channels at one place) with a NaN or infinity is left out.

        Raises:
            ValueError: a different number of channels than before.
        """
        channels = x.shape[self.channel_dim]
        rows = x.detach().movedim(self.channel_dim, -1).reshape(-1, channels) if x.numel() else x.new_zeros(0, channels)
        finite = torch.isfinite(rows).all(dim=1)
        rows = rows if bool(finite.all()) else rows[finite]
        if self._sum is not None and self._sum.numel() != channels:
            raise ValueError(f"ChannelMean.update: `x` has {channels} channels, earlier batches {self._sum.numel()}")
        total = rows.sum(dim=0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += rows.shape[0]

    @property
    def value(self) -> Tensor:
        """float64 ``[channels]``.

        Raises:
            ValueError: nothing finite was observed.
        """
        if self._sum is None or self._count == 0:
            raise ValueError(
                "ChannelMean.value: no data was observed; run at least one non-empty, finite calibration batch first"
            )
        return self._sum / self._count


def corrected_bias(bias: Tensor | None, float_mean: Tensor, quantized_mean: Tensor) -> Tensor:
    """The bias that gives the quantized layer the float layer's mean output: ``bias + float_mean - quantized_mean``.

    Both means are per output channel, before the activation function, over the same calibration data, with `bias` in
    place.

    Args:
        bias: ``[out]`` or None (no bias yet).
        float_mean: ``[out]``.
        quantized_mean: ``[out]``.

    Returns:
        ``[out]``, of `bias`'s dtype (float32 without one).

    Raises:
        ValueError: lengths that differ, or NaN/Inf in a mean.

    Example:
        >>> corrected_bias(None, torch.tensor([1.0]), torch.tensor([0.75]))
        tensor([0.2500])

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.2.
    """
    expected = tuple(float_mean.shape) if bias is None else tuple(bias.shape)
    for name, mean in (("float_mean", float_mean), ("quantized_mean", quantized_mean)):
        if tuple(mean.shape) != expected or mean.dim() != 1:
            raise ValueError(
                f"corrected_bias: `{name}` has shape {list(mean.shape)}, expected {list(expected)}, one mean per "
                "output channel"
            )
        if not bool(torch.isfinite(mean).all()):
            raise ValueError(f"corrected_bias: `{name}` holds NaN or infinity; check the calibration data")
    shift = float_mean.double() - quantized_mean.double()
    if bias is None:
        return shift.float()
    return (bias.detach().double() + shift.to(bias.device)).to(bias.dtype)


@torch.no_grad()
def expected_output_shift(layer: nn.Module, quantized_weight: Tensor, input_mean: Tensor) -> Tensor:
    """``E[W x] - E[W~ x] = (W - W~) E[x]`` per output channel: what the weight's rounding takes from the mean output.

    For convolutions the taps of a channel are summed, which neglects zero padding.

    Args:
        layer: ``nn.Linear`` / ``nn.Conv2d`` with the float weight W.
        quantized_weight: W~, the dequantized weight, float, the shape of W.
        input_mean: ``[in]``, mean of each input channel (see ``ChannelMean``).

    Returns:
        float64 ``[out]``.

    Raises:
        TypeError: another kind of layer.
        ValueError: shapes that do not match.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> expected_output_shift(layer, layer.weight, torch.ones(2))
        tensor([0.], dtype=torch.float64)

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.2.
    """
    layer = check_layer("expected_output_shift", "layer", layer)
    weight = layer.weight
    if quantized_weight.shape != weight.shape:
        raise ValueError(
            f"expected_output_shift: `quantized_weight` has shape {list(quantized_weight.shape)}, the layer's weight "
            f"{list(weight.shape)}"
        )
    if tuple(input_mean.shape) != (in_channels(layer),):
        raise ValueError(
            f"expected_output_shift: `input_mean` has shape {list(input_mean.shape)}, expected [{in_channels(layer)}], "
            "one mean per input channel"
        )
    view = by_input(layer)
    error = view.double() - quantized_weight.detach().double().reshape(view.shape)
    return (error * input_mean.double().reshape(view.shape[0], 1, view.shape[2], 1)).sum(dim=(2, 3)).flatten()
