"""Scores, by hand and through the running model; integer data, so that every comparison is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.pruning import (
    PruneConfig,
    apply_mask,
    magnitude_scores,
    random_scores,
    sparsegpt,
    taylor_scores,
    wanda_scores,
)
from fastcompress.pruning.evidence import Evidence, evidence, float_tensors
from fastcompress.pruning.layers import find_layers, tie
from fastcompress.pruning.source import Source

from .models import same, snapshot


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def with_integers(model: nn.Module) -> nn.Module:
    for index, parameter in enumerate(model.parameters()):
        parameter.data = integers(*parameter.shape, seed=index)
    return model


def scores(model: nn.Module, criterion: str, batches: list[Any], **options: Any) -> dict[str, Evidence]:
    layers, problems = tie(model, find_layers(model))
    assert not problems
    return {layer.name: found for layer, found in evidence(model, layers, criterion, Source(batches, **options))}


def test_magnitude() -> None:
    assert magnitude_scores(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)).tolist() == [[1.0, 2.0]]
    assert magnitude_scores(torch.zeros(1, 1, dtype=torch.float64)).dtype == torch.float64


def test_wanda_of_a_grouped_convolution_uses_its_own_inputs() -> None:
    weight, norms = torch.ones(4, 2, 1, 1), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert wanda_scores(weight, norms, groups=2)[:, :, 0, 0].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    with pytest.raises(ValueError, match=r"input_norms has shape \[4\], expected \[2\], one norm per input channel"):
        wanda_scores(weight, norms)


def test_taylor() -> None:
    assert taylor_scores(torch.tensor([2.0, -3.0]), torch.tensor([-1.0, 2.0])).tolist() == [2.0, 6.0]


def test_random() -> None:
    weight = torch.tensor([[1.0, 0.0, 3.0, -1.0]])
    first, again, other = (random_scores(weight, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first > 0).tolist() == [[True, False, True, True]]


def test_unknown_criterion() -> None:
    with pytest.raises(
        ValueError, match=r"criterion 'wonda' is unknown; valid are 'magnitude', .* did you mean 'wanda'"
    ):
        PruneConfig(0.5, criterion="wonda")
    with pytest.raises(TypeError, match=r"prune: criterion must be one of 'magnitude', .*, got None"):
        PruneConfig(0.5, criterion=None)  # type: ignore[arg-type]


def test_wanda_streams_over_the_data() -> None:
    model = with_integers(nn.Linear(6, 3))
    batches = [integers(5, 6, seed=7), integers(2, 4, 6, seed=8)]
    rows = torch.cat([batch.reshape(-1, 6) for batch in batches])
    found = scores(model, "wanda", batches)[""].scores
    assert torch.equal(found, model.weight.detach().abs() * rows.double().square().sum(0).sqrt().float())


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_of_convolutions(groups: int) -> None:
    model = with_integers(nn.Conv2d(4, 6, 3, groups=groups))
    batches = [integers(2, 4, 5, 5, seed=7), integers(1, 4, 6, 4, seed=8)]
    norms = sum(batch.double().square().sum((0, 2, 3)) for batch in batches).sqrt().float()
    assert torch.equal(scores(model, "wanda", batches)[""].scores, wanda_scores(model.weight, norms, groups))


def test_taylor_accumulates_batch_by_batch() -> None:
    model = with_integers(nn.Linear(4, 2, bias=False))
    batches = [integers(3, 4, seed=7), integers(3, 4, seed=8)]
    weight = model.weight.detach()
    # L = sum y², dL/dW = 2 y^T x.
    expected = sum((weight * (2 * (x @ weight.T).T @ x)).abs() for x in batches)
    assert torch.equal(scores(model, "taylor", batches)[""].scores, expected)


def test_taylor_with_a_loss_of_labels() -> None:
    model = with_integers(nn.Linear(4, 2, bias=False))
    x, y = integers(3, 4, seed=7), integers(3, 2, seed=8)
    found = scores(model, "taylor", [(x, y)], loss_fn=lambda out, batch: (out * batch[1]).sum())
    assert torch.equal(found[""].scores, (model.weight.detach() * (y.T @ x)).abs())


def test_taylor_leaves_frozen_weights_frozen_and_gradients_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[0].weight.requires_grad_(False)
    model[2].weight.grad = torch.ones(2, 4)
    before = snapshot(model)
    found = scores(model, "taylor", [torch.ones(2, 4)])
    assert bool((found["0"].scores > 0).any())
    assert same(model, before)


class Branches(nn.Module):
    """``used`` runs, with its input by keyword; ``unused`` never does."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"count": torch.ones(1, dtype=torch.long), "inner": (self.used(input=x),)}


@pytest.mark.parametrize(
    ("criterion", "problem"),
    [
        ("wanda", "it was never called during calibration"),
        ("sparsegpt", "it was never called during calibration"),
        ("taylor", "no gradient reached it during calibration"),
    ],
)
def test_a_layer_that_never_runs(criterion: str, problem: str) -> None:
    model = Branches()
    found = scores(model, criterion, [torch.ones(2, 4)])
    assert found["used"].problem is None
    assert found["unused"].problem == problem


@pytest.mark.parametrize(("criterion", "what"), [("wanda", "inputs"), ("taylor", "gradients")])
def test_infinite_data(criterion: str, what: str) -> None:
    found = scores(nn.Linear(4, 4), criterion, [torch.full((2, 4), torch.inf)])[""]
    assert found.problem == f"its {what} in calibration held NaN or infinity"


@pytest.mark.parametrize(
    ("criterion", "what"), [("wanda", "inputs were"), ("sparsegpt", "inputs were"), ("taylor", "gradients were")]
)
def test_data_that_says_nothing(criterion: str, what: str) -> None:
    layer = nn.Linear(4, 4, bias=False)
    found = scores(layer, criterion, [torch.zeros(2, 4)])[""]
    if criterion == "sparsegpt":
        with pytest.raises(ValueError, match=f"its {what} zero throughout calibration"):
            sparsegpt(layer.weight, found.hessian, "unstructured", 0.5)
    else:
        assert found == Evidence(problem=f"its {what} zero throughout calibration")


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_a_layer_that_only_got_empty_inputs_was_never_called(criterion: str) -> None:
    """As an expert to which no token was sent."""
    found = scores(nn.Linear(4, 4), criterion, [torch.ones(2, 4)], forward_fn=lambda model, x: model(x[:0]))
    assert found[""].problem == "it was never called during calibration"


def test_wanda_of_an_image_without_batch() -> None:
    model, x = with_integers(nn.Conv2d(4, 6, 1)), integers(4, 5, 5, seed=7)
    expected = wanda_scores(model.weight, x.double().square().sum((1, 2)).sqrt().float())
    assert torch.equal(scores(model, "wanda", [x])[""].scores, expected)


def test_masked_weights_score_zero() -> None:
    mask = integers(4, 4) > 0
    for criterion in ("magnitude", "wanda", "taylor", "random"):
        layer = nn.Linear(4, 4)
        apply_mask(layer, mask)
        found = scores(layer, criterion, [torch.ones(2, 4)])[""].scores
        assert torch.equal(found > 0, mask)


def test_float_tensors() -> None:
    a, b = torch.ones(1), torch.zeros(2)
    assert [id(t) for t in float_tensors({"n": 3, "x": [a, (torch.ones(1).long(), b)]})] == [id(a), id(b)]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            nn.Linear(4, 2),
            {"loss_fn": lambda out, batch: out},
            r"must return a scalar tensor, got a tensor of shape \[2",
        ),
        (nn.Linear(4, 2), {"loss_fn": lambda out, batch: 3.0}, "must return a scalar tensor, got 3.0"),
        (nn.Linear(4, 2), {"loss_fn": lambda out, batch: out.detach().sum()}, "needs a loss with a gradient"),
        (nn.Linear(4, 2), {"forward_fn": lambda model, batch: None}, "found no float tensor in the model's output"),
    ],
)
def test_wrong_losses(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        scores(model, "taylor", [torch.ones(2, 4)], **options)
    assert caught.value.__notes__ == ["raised while measuring gradients, on batch 0"]
