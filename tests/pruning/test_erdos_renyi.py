"""Sparsities by shape: the formula by hand, the sum, and layers that stay dense."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.pruning import erdos_renyi, sparsity_of


def test_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 100))
    # Both layers have 30,000 weights and sides of 400 together: each keeps the same.
    assert erdos_renyi(model, 0.9) == pytest.approx({"0": 0.9, "2": 0.9})
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 1))
    # Sides 16+32+3+3 = 54 and 32+64+1+1 = 98; weights 4608 and 2048; a tenth of 6656 is 665.6.
    epsilon = 665.6 / (54 + 98)
    expected = {"0": 1 - epsilon * 54 / 4608, "1": 1 - epsilon * 98 / 2048}
    assert erdos_renyi(model, 0.9) == pytest.approx(expected)


def test_small_layers_stay_dense_and_the_sum_holds() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 64), nn.Linear(64, 640), nn.Linear(640, 640))
    spread = erdos_renyi(model, 0.9)
    assert set(spread) == {"2", "3"}
    pruned = fc.prune(model, spread)
    zeros = sum(int((layer.weight == 0).sum()) for layer in pruned)  # type: ignore[arg-type, union-attr]
    total = sum(layer.weight.numel() for layer in model)  # type: ignore[misc, union-attr, operator]
    assert zeros / total == pytest.approx(0.9, abs=1e-3)


def test_spread_goes_into_blocks_and_recipes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(64, 10))
    spread = erdos_renyi(model, 0.9, "16x4", ignore=["4"])
    assert set(spread) == {"0", "2"}
    pruned = fc.prune(model, spread, "16x4")
    for name, sparsity in spread.items():
        assert sparsity_of(pruned.get_submodule(name)) == pytest.approx(sparsity, abs=0.06)
    assert fc.recipes.Pruning(spread, "16x4", end=1).sparsity == spread


def test_errors() -> None:
    with pytest.raises(TypeError, match="model must be"):
        erdos_renyi("model", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sparsity"):
        erdos_renyi(nn.Linear(4, 4), 1.5)
    with pytest.raises(ValueError, match=r"no layer can be pruned \(the model has none\)"):
        erdos_renyi(nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match="no layer can be pruned"):
        erdos_renyi(nn.Sequential(nn.Linear(5, 7)), 0.5, "16x4")
