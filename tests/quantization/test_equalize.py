"""Equalization keeps the function, evens out the ranges, and refuses what it cannot do."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fastcompress.quantization import absorb_high_bias, equalize, is_positively_homogeneous
from fastcompress.quantization.channels import input_absmax, output_absmax
from tests.quantization.margins import assert_same_function


def uneven(*modules: nn.Module, seed: int = 0) -> nn.Sequential:
    """A float64 network whose channels differ by up to four orders of magnitude."""
    torch.manual_seed(seed)
    network = nn.Sequential(*modules).double().eval()
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                factor = 10.0 ** torch.empty(layer.weight.shape[0], dtype=torch.float64).uniform_(-2, 2)
                layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.dim() - 1)))
                if layer.bias is not None:
                    layer.bias.normal_()
    return network


def image() -> Tensor:
    return torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


NETWORKS = {
    "linear": lambda: uneven(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)),
    "linear leaky": lambda: uneven(nn.Linear(3, 8, bias=False), nn.LeakyReLU(0.2), nn.Linear(8, 4)),
    "linear nothing between": lambda: uneven(nn.Linear(3, 8), nn.Identity(), nn.Linear(8, 4)),
    "conv": lambda: uneven(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)),
    "conv prelu": lambda: uneven(nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 4, 1, bias=False)),
    "depthwise second": lambda: uneven(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1)),
    "depthwise first": lambda: uneven(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Conv2d(3, 5, 1)),
    "multiplier": lambda: uneven(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 3, groups=4)),
    "grouped": lambda: uneven(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=3, padding=1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_function_is_kept_and_ranges_are_equal(name: str) -> None:
    network = NETWORKS[name]()
    x = image()
    if name.startswith("linear"):
        x = x.movedim(1, -1)
    want = network(x)
    before = copy.deepcopy(network)
    first, second = network[0], network[2]
    (scale,) = equalize([(first, second)])
    assert_same_function(network(x), want)
    assert scale.shape == (first.weight.shape[0],)
    ratio = output_absmax(first) / input_absmax(second)
    assert float((ratio - 1).abs().max()) < 1e-5  # absmax in float32
    assert float((output_absmax(before[0]) / scale / output_absmax(first) - 1).abs().max()) < 1e-5
    spread_before = output_absmax(before[0]).log().std() + input_absmax(before[2]).log().std()
    assert output_absmax(first).log().std() + input_absmax(second).log().std() <= spread_before


def test_closed_form_of_one_pair() -> None:
    first, second = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[8.0], [0.5]]))
        first.bias.copy_(torch.tensor([4.0, 1.0]))
        second.weight.copy_(torch.tensor([[2.0, 2.0]]))
    (scale,) = equalize([(first, second)])
    assert scale.tolist() == [2.0, 0.5]
    assert first.weight.flatten().tolist() == [4.0, 1.0]
    assert first.bias.tolist() == [2.0, 2.0]
    assert second.weight.flatten().tolist() == [4.0, 1.0]


def test_a_chain_settles_and_keeps_the_function() -> None:
    network = uneven(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )
    x = image()
    want = network(x)
    layers = [network[index] for index in (0, 2, 4, 6)]
    pairs = list(pairwise(layers))
    scales = equalize(pairs, iterations=50, tolerance=1e-4)
    assert_same_function(network(x), want)
    assert len(scales) == 3
    for first, second in pairs:
        assert float((output_absmax(first) / input_absmax(second) - 1).abs().max()) < 1e-3


def test_dead_channels_keep_their_scale() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    with torch.no_grad():
        first.weight[1] = 0.0
        second.weight[:, 2] = 0.0
    (scale,) = equalize([(first, second)])
    assert scale[1] == scale[2] == 1.0
    assert bool(torch.isfinite(first.weight).all())


def test_extreme_ranges_do_not_overflow() -> None:
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        first.weight.fill_(1e30)
        second.weight.fill_(1e-30)
    equalize([(first, second)])
    assert float(first.weight.detach()) == pytest.approx(1.0, rel=1e-5)  # float32 scale
    assert float(second.weight.detach()) == pytest.approx(1.0, rel=1e-5)


def test_half_precision_overflow_is_an_error_and_changes_nothing() -> None:
    first, second = nn.Linear(1, 1).half(), nn.Linear(1, 1).half()
    with torch.no_grad():
        first.weight.fill_(6e-8)
        first.bias.fill_(6e4)
        second.weight.fill_(6e4)
    before = copy.deepcopy([first.state_dict(), second.state_dict()])
    with pytest.raises(ValueError, match=r"scaling `pairs\[0\]` overflows torch.float16"):
        equalize([(first, second)])
    for layer, old in zip((first, second), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in layer.state_dict().items())


def test_bad_pairs_are_refused_before_anything_changes() -> None:
    a, b, c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = a.weight
    spoiled = nn.Linear(4, 4)
    with torch.no_grad():
        spoiled.weight[0, 0] = math.nan
    before = a.weight.detach().clone()
    cases = [
        ([(a, b), (a, c)], ValueError, r"`pairs\[1\].first` is also the first layer of an earlier pair"),
        ([(a, c), (b, c)], ValueError, r"`pairs\[1\].second` is also the second layer"),
        ([(a, b), (b, tied)], ValueError, r"`pairs\[1\].second` shares its weight with another layer"),
        ([(a, a)], ValueError, r"`pairs\[0\]` is one layer twice"),
        ([(a, b), (b, nn.Linear(5, 4))], ValueError, "first has 4 output channels but second has 5 input channels"),
        ([(a, b), (b, spoiled)], ValueError, r"weight of `pairs\[1\].second` holds NaN or infinity"),
        ([(a, nn.ReLU())], TypeError, r"`pairs\[0\].second` must be an nn.Linear or nn.Conv2d, got ReLU"),
    ]
    for pairs, error, message in cases:
        with pytest.raises(error, match=message):
            equalize(pairs)
        assert torch.equal(a.weight, before)
    with pytest.raises(ValueError, match="`iterations` must be at least 1, got 0"):
        equalize([(a, b)], iterations=0)


def test_nothing_to_do() -> None:
    assert equalize([]) == []


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.Identity(), True),
        (nn.ReLU(), True),
        (nn.LeakyReLU(), True),
        (nn.PReLU(), True),
        (nn.ReLU6(), False),
        (nn.GELU(), False),
        (nn.SiLU(), False),
        (nn.Hardswish(), False),
    ],
)
def test_homogeneity_is_what_it_says(activation: nn.Module, expected: bool) -> None:
    assert is_positively_homogeneous(activation) is expected
    x = torch.linspace(-8, 8, 101)
    with torch.no_grad():
        assert torch.equal(activation(x * 4), activation(x) * 4) is expected


# --- high-bias absorption


def shifted(second: nn.Module) -> nn.Sequential:
    network = uneven(nn.Conv2d(3, 4, 1), nn.ReLU(), second)
    with torch.no_grad():
        network[0].bias.copy_(torch.tensor([400.0, -5.0, 500.0, 0.0]))
    return network


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise", "valid"])
def test_absorption_is_exact_where_the_relu_is_always_open(kind: str, bias: bool) -> None:
    second = {
        "conv": nn.Conv2d(4, 5, 3, bias=bias),
        "grouped": nn.Conv2d(4, 6, 3, groups=2, bias=bias),
        "depthwise": nn.Conv2d(4, 4, 3, groups=4, bias=bias),
        "valid": nn.Conv2d(4, 5, 3, padding="valid", bias=bias),
    }[kind]
    network = shifted(second)
    x = image()
    want = network(x)
    hidden = network[0](x)
    lowest = hidden.amin(dim=(0, 2, 3))
    amount = absorb_high_bias(network[0], network[2], lowest, torch.zeros(4))
    assert bool((amount[[0, 2]] > 1.0).all())
    assert amount[1] == 0.0
    assert_same_function(network(x), want)
    assert bool((network[1](network[0](x)).amax(dim=(0, 2, 3)) <= hidden.relu().amax(dim=(0, 2, 3))).all())


def test_absorbed_amount_is_mean_minus_three_sigma() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    amount = absorb_high_bias(first, second, torch.tensor([5.0, 5.0, -1.0]), torch.tensor([1.0, 2.0, 0.0]))
    assert amount.tolist() == [2.0, 0.0, 0.0]


def test_absorption_errors_change_nothing() -> None:
    first, mean, std = nn.Conv2d(3, 4, 1), torch.full((4,), 9.0), torch.ones(4)
    second = nn.Conv2d(4, 2, 3)
    before = copy.deepcopy([first.state_dict(), second.state_dict()])
    cases = [
        ((nn.Conv2d(3, 4, 1, bias=False), second, mean, std), "`first` has no bias"),
        ((first, nn.Conv2d(4, 2, 3, padding=1), mean, std), r"`second` pads its input \(padding=\(1, 1\)\)"),
        ((first, nn.Conv2d(4, 2, 3, padding="same"), mean, std), "`second` pads its input"),
        ((first, nn.Conv2d(5, 2, 3), mean, std), "`first` has 4 output channels but `second` has 5 input channels"),
        ((first, second, mean[:3], std), "`mean` must be 4 finite values"),
        ((first, second, mean, std * math.nan), "`std` must be 4 finite values"),
        ((first, second, mean, -std), "`std` and `sigmas` must not be negative"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            absorb_high_bias(*arguments)
    for layer, old in zip((first, second), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in layer.state_dict().items())
