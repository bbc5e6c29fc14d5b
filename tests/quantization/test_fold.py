"""Folded layers compute what layer and batch normalisation computed; everything unfoldable is an error."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastcompress.quantization import fold_batchnorm
from tests.quantization.margins import assert_same_function


def trained(norm: nn.Module, seed: int = 0) -> nn.Module:
    """The norm in eval mode with statistics and parameters of a trained one, some of them awkward."""
    generator = torch.Generator().manual_seed(seed)
    count = norm.num_features
    norm.running_mean.copy_(torch.randn(count, generator=generator))
    norm.running_var.copy_(torch.rand(count, generator=generator) * 4)
    norm.running_var[0] = 0.0  # a dead channel: only eps keeps it finite
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.randn(count, generator=generator))
            norm.bias.copy_(torch.randn(count, generator=generator))
            norm.weight[-1] = 0.0
    return norm.double().eval()


def with_parameters(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    folded = copy.deepcopy(layer)
    folded.weight = nn.Parameter(weight)
    folded.bias = nn.Parameter(bias)
    return folded


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "padded", "linear"])
def test_fold_preserves_the_function(kind: str, bias: bool, affine: bool, eps: float) -> None:
    torch.manual_seed(1)
    layer: nn.Module = {
        "conv": nn.Conv2d(4, 6, 3, bias=bias),
        "depthwise": nn.Conv2d(6, 6, 3, groups=6, bias=bias),
        "padded": nn.Conv2d(4, 6, (3, 5), padding=(1, 2), stride=2, padding_mode="reflect", bias=bias),
        "linear": nn.Linear(5, 6, bias=bias),
    }[kind].double()
    norm = trained((nn.BatchNorm1d if kind == "linear" else nn.BatchNorm2d)(6, eps=eps, affine=affine))
    x = torch.randn((7, 5) if kind == "linear" else (2, layer.in_channels, 9, 9), dtype=torch.float64)
    before = copy.deepcopy((layer.state_dict(), norm.state_dict()))

    weight, new_bias = fold_batchnorm(layer, norm)

    assert weight.shape == layer.weight.shape
    assert new_bias.shape == (6,)
    assert not weight.requires_grad
    assert_same_function(with_parameters(layer, weight, new_bias)(x), norm(layer(x)))
    for old, module in zip(before, (layer, norm), strict=True):
        assert all(torch.equal(old[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_has_the_layers_dtype_and_is_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    layer = nn.Conv2d(3, 5, 1).to(dtype)
    norm = trained(nn.BatchNorm2d(5)).to(dtype)
    weight, bias = fold_batchnorm(layer, norm)
    wide_weight, wide_bias = fold_batchnorm(copy.deepcopy(layer).double(), copy.deepcopy(norm).double())
    assert weight.dtype == bias.dtype == dtype
    assert torch.equal(weight, wide_weight.to(dtype))
    assert torch.equal(bias, wide_bias.to(dtype))


def test_sync_batchnorm_counts() -> None:
    layer = nn.Conv2d(3, 5, 1).double()
    plain = trained(nn.BatchNorm2d(5))
    sync = nn.SyncBatchNorm(5).double().eval()
    sync.load_state_dict(plain.state_dict())
    for a, b in zip(fold_batchnorm(layer, sync), fold_batchnorm(layer, plain), strict=True):
        assert torch.equal(a, b)


def test_training_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"`norm` is in training mode.*call model.eval\(\) first"):
        fold_batchnorm(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))


def test_missing_statistics_are_an_error() -> None:
    with pytest.raises(ValueError, match="`norm` has no running statistics"):
        fold_batchnorm(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, track_running_stats=False).eval())


def test_damaged_statistics_are_an_error() -> None:
    norm = nn.BatchNorm2d(5).eval()
    for value in (-1.0, float("nan")):
        norm.running_var[2] = value
        with pytest.raises(ValueError, match="must be positive in every channel; the statistics are damaged"):
            fold_batchnorm(nn.Conv2d(3, 5, 1), norm)


def test_channels_must_match() -> None:
    with pytest.raises(ValueError, match="`layer` has 5 output channels but `norm` has 6"):
        fold_batchnorm(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(6).eval())


@pytest.mark.parametrize(
    ("layer", "norm", "message"),
    [
        (
            nn.ConvTranspose2d(3, 5, 1),
            nn.BatchNorm2d(5),
            "`layer` must be an nn.Conv2d or nn.Linear, got ConvTranspose2d",
        ),
        (nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5), "`layer` must be an nn.Conv2d or nn.Linear, got Conv1d"),
        (nn.Conv2d(3, 5, 1), nn.BatchNorm1d(5), "`norm` behind Conv2d must be .*BatchNorm2d.*, got BatchNorm1d"),
        (nn.Linear(3, 5), nn.BatchNorm2d(5), "`norm` behind Linear must be .*BatchNorm1d.*, got BatchNorm2d"),
        (nn.Conv2d(3, 5, 1), nn.GroupNorm(1, 5), "`norm` behind Conv2d must be .*, got GroupNorm"),
    ],
)
def test_wrong_modules(layer: nn.Module, norm: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fold_batchnorm(layer, norm.eval())
