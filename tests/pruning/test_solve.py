"""One layer's mask: the retained share, and SparseGPT in a permuted order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcompress.pruning import Hessian, permuted, restored, sparsegpt
from fastcompress.pruning.evidence import Evidence
from fastcompress.pruning.layers import PrunableLayer, find_layers
from fastcompress.pruning.patterns import parse_pattern
from fastcompress.pruning.solve import retained_share, solve


def single(module: nn.Module) -> PrunableLayer:
    return PrunableLayer(find_layers(module)[0])


def seen(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    hessian = Hessian(module)
    hessian.update(x)
    return hessian.matrix


def test_retained_share() -> None:
    scores, mask = torch.tensor([[1.0, 3.0], [4.0, 0.0]]), torch.tensor([[False, True], [False, True]])
    assert retained_share(scores, mask) == 3 / 8
    assert retained_share(torch.zeros(2, 2), mask) == 1.0


def test_scores_decide() -> None:
    layer = nn.Linear(4, 1)
    found = solve(single(layer), Evidence(torch.tensor([[4.0, 1.0, 3.0, 2.0]])), parse_pattern("unstructured"), 0.5)
    assert found.mask.tolist() == [[True, False, True, False]]
    assert (found.retained, found.weight, found.gain) == (0.7, None, None)


@pytest.mark.parametrize("conv", [False, True])
def test_sparsegpt_in_a_permuted_order_is_that_of_a_permuted_layer(conv: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Conv2d(12, 16, 3, bias=False) if conv else nn.Linear(12, 16, bias=False)
    x = torch.randn(64, 12, 5, 5) if conv else torch.randn(64, 12)
    channels = 1 if conv else -1
    found = solve(single(layer), Evidence(hessian=seen(layer, x)), parse_pattern("4x4"), 0.5, (True, True), 3)
    assert found.input_order is not None
    assert found.output_order is not None
    assert found.gain > 0
    other = nn.Conv2d(12, 16, 3, bias=False) if conv else nn.Linear(12, 16, bias=False)
    other.weight.data = permuted(layer.weight.detach(), found.input_order, found.output_order)
    hessian = seen(other, x.index_select(channels, found.input_order))
    by_hand = sparsegpt(other.weight, hessian, "4x4", 0.5)
    assert torch.equal(restored(by_hand.mask, found.input_order, found.output_order), found.mask)
    expected = restored(by_hand.weight, found.input_order, found.output_order)
    torch.testing.assert_close(found.weight, expected, rtol=1e-3, atol=1e-5)


def test_grouped_convolutions_are_never_permuted() -> None:
    layer = nn.Conv2d(16, 16, 1, groups=2)
    found = solve(single(layer), Evidence(layer.weight.detach().abs()), parse_pattern("4x4"), 0.5, (True, True))
    assert (found.input_order, found.output_order, found.gain) == (None, None, None)


def test_a_hessian_that_cannot_be_inverted() -> None:
    hessian = torch.full((4, 4), torch.nan)
    with pytest.raises(ValueError, match="its inputs in calibration held NaN or infinity"):
        solve(single(nn.Linear(4, 4)), Evidence(hessian=hessian), parse_pattern("4x4"), 0.5, (True, False))
