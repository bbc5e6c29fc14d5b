"""Bias correction restores the mean output; the running mean is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastcompress.quantization import (
    ChannelMean,
    corrected_bias,
    expected_output_shift,
    quantize_weight,
    weight_scales,
)


def coarse(weight: Tensor) -> Tensor:
    """The weight after a very rough quantization, whose error has a mean."""
    scale = weight_scales(weight) * 30
    dequantized = quantize_weight(weight, scale).float() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return dequantized.to(weight.dtype)


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(6, 5).double(), torch.rand(200, 6, dtype=torch.float64)),
        "linear without bias": (nn.Linear(6, 5, bias=False).double(), torch.rand(200, 6, dtype=torch.float64)),
        "conv": (nn.Conv2d(4, 5, 3).double(), torch.rand(3, 4, 9, 9, dtype=torch.float64)),
        "grouped": (nn.Conv2d(4, 6, 1, groups=2).double(), torch.rand(3, 4, 9, 9, dtype=torch.float64)),
        "depthwise": (nn.Conv2d(4, 4, 1, groups=4).double(), torch.rand(3, 4, 9, 9, dtype=torch.float64)),
    }


NAMES = list(layers())


def channel_mean(y: Tensor) -> Tensor:
    mean = ChannelMean(1)
    for batch in y.split(2):
        mean.update(batch)
    return mean.value


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_empirical_correction_restores_the_mean(name: str) -> None:
    layer, x = layers()[name]
    with torch.no_grad():
        want = channel_mean(layer(x))
        layer.weight.copy_(coarse(layer.weight))
        got = channel_mean(layer(x))
        assert error(got, want) > 1e-3
        bias = corrected_bias(layer.bias, want, got)
        layer.bias = nn.Parameter(bias.double())
        # float64 when there was a bias, else float32: its unit roundoff
        assert error(channel_mean(layer(x)), want) <= (1e-13 if bias.dtype == torch.float64 else 2.0**-24)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "conv"])
def test_expected_shift_is_the_empirical_one(name: str) -> None:
    # Not "conv": a 3×3 layer sees border pixels less often, so its inputs' mean differs from tap to tap.
    layer, x = layers()[name]
    with torch.no_grad():
        want = channel_mean(layer(x))
        rough = coarse(layer.weight)
        shift = expected_output_shift(layer, rough, channel_mean(x))
        layer.weight.copy_(rough)
        assert error(channel_mean(layer(x)) + shift, want) <= 1e-13


def test_expected_shift_of_a_convolution_with_constant_input() -> None:
    layer, x = layers()["conv"]
    mean = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    with torch.no_grad():
        x = mean.reshape(1, 4, 1, 1).expand_as(x)
        want = channel_mean(layer(x))
        rough = coarse(layer.weight)
        shift = expected_output_shift(layer, rough, mean)
        layer.weight.copy_(rough)
        assert error(channel_mean(layer(x)) + shift, want) <= 1e-12


def test_values_and_dtypes() -> None:
    bias = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    got = corrected_bias(bias, torch.tensor([0.5, 0.0]), torch.tensor([0.25, 1.0]))
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [1.25, 1.0]
    assert bias.tolist() == [1.0, 2.0]


def test_bad_means() -> None:
    two = torch.ones(2)
    with pytest.raises(ValueError, match=r"`quantized_mean` has shape \[3\], expected \[2\]"):
        corrected_bias(two, two, torch.ones(3))
    with pytest.raises(ValueError, match=r"`float_mean` has shape \[2, 1\], expected"):
        corrected_bias(None, torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match="`float_mean` holds NaN or infinity"):
        corrected_bias(two, two * math.nan, two)


def test_bad_shift_arguments() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"`layer` must be an nn\.Linear or nn\.Conv2d, got ReLU"):
        expected_output_shift(nn.ReLU(), torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"`quantized_weight` has shape \[3, 2\], the layer's weight \[2, 3\]"):
        expected_output_shift(layer, torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"`input_mean` has shape \[2\], expected \[3\]"):
        expected_output_shift(layer, torch.ones(2, 3), torch.ones(2))


# --- the running mean


def test_mean_over_batches_is_the_mean_of_everything() -> None:
    x = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(1))
    mean = ChannelMean()
    for batch in x.split(7):
        mean.update(batch)
    assert error(mean.value, x.double().mean(dim=(0, 1))) <= 1e-13


def test_bad_rows_are_left_out_and_nothing_is_an_error() -> None:
    mean = ChannelMean()
    with pytest.raises(ValueError, match="no data was observed"):
        _ = mean.value
    mean.update(torch.empty(0, 2))
    mean.update(torch.tensor([[math.nan, 1.0]]))
    with pytest.raises(ValueError, match="no data was observed"):
        _ = mean.value
    mean.update(torch.tensor([[1.0, 2.0], [math.inf, 0.0], [3.0, 4.0]]))
    assert mean.value.tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="`x` has 3 channels, earlier batches 2"):
        mean.update(torch.ones(1, 3))
