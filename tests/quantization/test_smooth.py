"""SmoothQuant: the formula, an unchanged function, a balanced activation, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastcompress.quantization import ChannelAbsMax, smooth, smoothing_scales
from tests.quantization.margins import assert_same_function

C = 12


class PlainRMSNorm(nn.Module):
    """As many model libraries write it."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * (self.weight + self.offset)


def outlying_norm(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(C, generator=generator) + 0.5)
        norm.weight[3] = 80.0
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.randn(C, generator=generator))
    return norm.double()


def data() -> Tensor:
    return torch.randn(5, 7, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def peak_of(x: Tensor) -> Tensor:
    peak = ChannelAbsMax()
    peak.update(x)
    assert peak.value is not None
    return peak.value


PREVIOUS = {
    "layernorm": lambda: outlying_norm(nn.LayerNorm(C)),
    "layernorm without bias": lambda: outlying_norm(nn.LayerNorm(C, bias=False)),
    "rmsnorm": lambda: outlying_norm(nn.RMSNorm(C)),
    "own rmsnorm": lambda: outlying_norm(PlainRMSNorm()),
    "linear": lambda: nn.Linear(C, C).double(),
    "linear without bias": lambda: nn.Linear(C, C, bias=False).double(),
}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("kind", PREVIOUS)
def test_function_is_kept(kind: str, alpha: float) -> None:
    torch.manual_seed(2)
    previous = PREVIOUS[kind]()
    linears = [nn.Linear(C, 4).double(), nn.Linear(C, 9, bias=False).double()]
    x = data()
    hidden = previous(x)
    want = [linear(hidden) for linear in linears]
    scale = smooth(previous, linears, peak_of(hidden), alpha)
    for linear, expected in zip(linears, want, strict=True):
        assert_same_function(linear(previous(x)), expected)
    assert_same_function(previous(x) * scale.double(), hidden)


def test_formula() -> None:
    linears = [nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)]
    with torch.no_grad():
        linears[0].weight.copy_(torch.tensor([[4.0, -0.25]]))
        linears[1].weight.copy_(torch.tensor([[-1.0, 0.125]]))
    peak = torch.tensor([64.0, 4.0])
    assert smoothing_scales(peak, linears, 0.5).tolist() == [4.0, 4.0]
    assert smoothing_scales(peak, linears, 1.0).tolist() == [64.0, 4.0]
    assert smoothing_scales(peak, linears, 0.0).tolist() == [0.25, 4.0]


def test_the_outlier_channel_is_tamed() -> None:
    torch.manual_seed(3)
    norm, linear = outlying_norm(nn.LayerNorm(C)), nn.Linear(C, 16).double()
    before = peak_of(norm(data()))
    smooth(norm, [linear], before)
    after = peak_of(norm(data()))
    assert float(after.max() / after.median()) < 0.3 * float(before.max() / before.median())


def test_at_one_half_both_sides_have_the_same_peaks() -> None:
    torch.manual_seed(4)
    norm, linear = outlying_norm(nn.LayerNorm(C)), nn.Linear(C, 16).double()
    smooth(norm, [linear], peak_of(norm(data())), 0.5)
    ratio = peak_of(norm(data())) / linear.weight.abs().amax(dim=0)
    assert float((ratio - 1).detach().abs().max()) < 1e-5  # peaks are float32


def test_dead_channels_are_left_alone() -> None:
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight[:, 1] = 0.0
    scale = smoothing_scales(torch.tensor([0.0, 5.0, 5.0]), [linear])
    assert scale[:2].tolist() == [1.0, 1.0]
    assert scale[2] != 1.0


def test_short_formats_stay_what_they_are() -> None:
    norm, linear = nn.LayerNorm(C).bfloat16(), nn.Linear(C, 4).bfloat16()
    smooth(norm, [linear], torch.linspace(1, 100, C))
    assert {p.dtype for p in [*norm.parameters(), *linear.parameters()]} == {torch.bfloat16}


class Subclass(nn.LayerNorm):
    """A LayerNorm with a forward of its own, which the scales do not pass through."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


def test_refusals_change_nothing() -> None:
    norm, linear, peak = nn.LayerNorm(C), nn.Linear(C, C), torch.ones(C)
    tied = nn.Linear(C, C)
    tied.weight = linear.weight
    half = nn.Linear(C, 2).half()
    with torch.no_grad():
        half.weight.fill_(6e4)
    cases = [
        (norm, [], peak, 0.5, ValueError, "`linears` is empty"),
        (norm, [linear], peak, 1.5, ValueError, r"`alpha` must be in \[0, 1\], got 1.5"),
        (norm, [linear], peak, math.nan, ValueError, r"`alpha` must be in \[0, 1\], got nan"),
        (norm, [nn.Conv2d(C, 2, 1)], peak, 0.5, TypeError, r"`linears\[0\]` must be an nn.Linear, got Conv2d"),
        (norm, [linear, nn.Linear(5, 2)], peak, 0.5, ValueError, r"`linears\[1\]` has 5 input features"),
        (norm, [linear, tied], peak, 0.5, ValueError, r"`linears\[1\]` shares its weight"),
        (norm, [linear], peak * math.nan, 0.5, ValueError, "must be finite"),
        (norm, [linear], -peak, 0.5, ValueError, "must not be negative"),
        (linear, [linear], peak, 0.5, ValueError, "`previous` is, or shares its weight with"),
        (nn.LayerNorm(C, elementwise_affine=False), [linear], peak, 0.5, ValueError, "has no weight that could absorb"),
        (nn.LayerNorm((C, C)), [linear], peak, 0.5, TypeError, "over one dimension, got LayerNorm"),
        (nn.Embedding(5, C), [linear], peak, 0.5, TypeError, "over one dimension, got Embedding"),
        (nn.Linear(3, 7), [linear], peak, 0.5, ValueError, "has 7 output channels, but `linears` read 12"),
        (PlainRMSNorm(offset=1.0), [linear], peak, 0.5, TypeError, "not proportional to its weight"),
        (Subclass(C), [linear], peak, 0.5, TypeError, "not proportional to its weight"),
        (nn.PReLU(C), [linear], peak, 0.5, TypeError, "not proportional to its weight"),
        (nn.BatchNorm1d(C), [linear], peak, 0.5, TypeError, "not proportional to its weight"),
        (norm, [linear, half], peak * 1e4, 1.0, ValueError, "overflow their dtype"),
    ]
    watched = [norm, linear, half]
    before = copy.deepcopy([module.state_dict() for module in watched])
    for previous, linears, absmax, alpha, error, message in cases:
        own = copy.deepcopy(previous.state_dict())
        with pytest.raises(error, match=message):
            smooth(previous, linears, absmax, alpha)
        assert all(torch.equal(value, own[key]) for key, value in previous.state_dict().items())
        for module, old in zip(watched, before, strict=True):
            assert all(torch.equal(value, old[key]) for key, value in module.state_dict().items())


# --- the observer


def test_channel_absmax_streams() -> None:
    x = torch.randn(40, 3, C, generator=torch.Generator().manual_seed(5))
    peak = ChannelAbsMax()
    for batch in x.split(7):
        peak.update(batch)
    assert peak.value is not None
    assert torch.equal(peak.value, x.abs().amax(dim=(0, 1)))


def test_channel_absmax_of_images_and_bad_values() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(6))
    peak = ChannelAbsMax(channel_dim=1)
    peak.update(x[:0])
    assert peak.value is None
    peak.update(x)
    x[0, 0, 0, 0], x[1, 2, 0, 0] = math.nan, -math.inf
    peak.update(x)
    assert peak.value is not None
    assert bool(torch.isfinite(peak.value).all())
    assert peak.value.shape == (3,)
    with pytest.raises(ValueError, match="`x` has 4 channels, earlier batches 3"):
        peak.update(torch.ones(1, 4, 2, 2))
