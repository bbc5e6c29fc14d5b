"""`max_drop`: what is relaxed, in which order, and when it stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.pruning import apply_mask, mask_of, relax_mask
from fastcompress.quantization import fake_quantized
from fastcompress.recipes.search import masked_fraction

WIDTH, CLASSES = 32, 4


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )


def _inputs() -> Tensor:
    return torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))


def _batches(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    x = _inputs()
    with torch.no_grad():
        y = model(x).argmax(1)
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]


def _compress(max_drop: float | None, stages: list[Any], score: Any = None) -> fc.recipes.CompressionResult:
    model, x = _network(), _inputs()
    with torch.no_grad():
        wanted = model(x)

    def likeness(candidate: nn.Module) -> float:
        return -float((candidate(x) - wanted).square().mean())

    return fc.compress(
        model,
        stages,
        _batches(model),
        epochs=2,
        eval_fn=score or likeness,
        max_drop=max_drop,
        only_if_faster=False,
        progress=False,
    )


PRUNING = fc.recipes.Pruning(0.75, pattern="4x4", end=1)
QAT = fc.recipes.QAT("W8A8", start=1)


def test_nothing_is_given_up_within_the_budget() -> None:
    result = _compress(1e9, [PRUNING, QAT])
    assert result.given_up == ()
    assert len(result.history) == 2
    assert masked_fraction(result.trained.get_submodule("0")) == 0.75


def test_an_impossible_budget_takes_everything_back() -> None:
    result = _compress(0.0, [PRUNING, QAT])
    assert [g.what for g in result.given_up] == sorted(g.what for g in result.given_up)  # int8 before sparsity
    assert all(
        masked_fraction(layer) == 0.0 for name, layer in result.trained.named_modules() if mask_of(layer) is not None
    )
    # Layers whose rounding costs something are float now, and an epoch of training followed each change of a mask.
    relaxed = [g for g in result.given_up if g.what == "sparsity"]
    assert [(g.before, g.after) for g in relaxed if g.layer == "0"] == [("75%", "50%"), ("50%", "0%")]
    assert len(result.history) == 2 + len(relaxed)
    taken = {g.layer for g in result.given_up if g.what == "int8"}
    assert taken.isdisjoint(fake_quantized(result.trained))


def test_it_stops_as_soon_as_the_budget_holds() -> None:
    full = _compress(0.0, [PRUNING])
    assert len(full.given_up) >= 2
    dense = full.dense_score
    assert dense is not None
    first = dense - full.given_up[0].score
    result = _compress(first + 1e-9, [PRUNING])
    assert result.given_up == full.given_up[:1]
    assert result.drop is not None
    assert result.drop <= first + 1e-9
    assert result.score == result.given_up[-1].score


def test_the_layer_that_costs_most_goes_first() -> None:
    def score(candidate: nn.Module) -> float:
        return 1.0 - masked_fraction(candidate.get_submodule("2"))  # nothing else counts

    result = fc.compress(
        _network(), PRUNING, _batches(_network()), epochs=1, eval_fn=score, max_drop=0.6, convert=False, progress=False
    )
    assert [g.layer for g in result.given_up] == ["2"]


def test_relaxed_weights_come_back_at_zero_and_best_first() -> None:
    layer = nn.Linear(8, 8, bias=False)
    keep = torch.zeros(8, 8, dtype=torch.bool)
    keep[:4, :4] = True
    apply_mask(layer, keep)
    before = layer.weight.detach().clone()
    scores = torch.ones(8, 8)
    scores[4:, :4] = 5.0
    relax_mask(layer, "4x4", 0.5, scores)
    wanted = keep.clone()
    wanted[4:, :4] = True
    mask = mask_of(layer)
    assert mask is not None
    assert torch.equal(mask, wanted)
    assert torch.equal(layer.weight, before)
    relax_mask(layer, "4x4", 0.0, scores)
    assert masked_fraction(layer) == 0.0


def test_relax_mask_refuses() -> None:
    layer = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="has no mask"):
        relax_mask(layer, "4x4", 0.5, torch.ones(8, 8))
    apply_mask(layer, torch.rand(8, 8) > 0.5)
    with pytest.raises(ValueError, match=r"shape \[8, 8\], got \[4, 4\]"):
        relax_mask(layer, "4x4", 0.5, torch.ones(4, 4))
    with pytest.raises(ValueError, match="one sparsity only"):
        relax_mask(layer, "2:4", 0.25, torch.ones(8, 8))
