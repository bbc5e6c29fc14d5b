"""`Pruner`: what is pruned when, and that it stays so whatever the optimizer does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.pruning import Pruner, PrunerConfig, mask_of, masked, pruning_of, sparsity_of
from fastcompress.pruning.mask import original_weight

from .models import conv_net, images, masks_of, mlp, pruned_blocks, same, snapshot, train_step, vectors

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "movement", "random"])
@pytest.mark.parametrize("pattern", ["unstructured", "4x2", "2:4"])
def test_a_pruned_weight_never_comes_back(name: str, criterion: str, pattern: str) -> None:
    model, x = mlp(), vectors()[0]
    optimizer = OPTIMIZERS[name](model.parameters())
    final = 0.5 if pattern == "2:4" else 0.8
    config = PrunerConfig(final, pattern, criterion, start_step=2, end_step=14, frequency=3, ignore="4")
    pruner = Pruner(model, config)
    assert pruner.sparsity == 0.0
    before = masks_of(model)
    for step in range(1, 20):
        train_step(model, optimizer, x)
        updated = pruner.step()
        assert updated == (step in (2, 5, 8, 11, 14))
        after = masks_of(model)
        for layer, mask in after.items():
            module = model.get_submodule(layer)
            assert not bool((mask & ~before[layer]).any())
            assert bool((module.weight[~mask] == 0).all())
            units = mask.numel() // {"unstructured": 1, "4x2": 8, "2:4": 4}[pattern]
            scheduled = config.sparsity_at(max(s for s in (0, 2, 5, 8, 11, 14) if s <= step))
            pruned = (
                round(scheduled / 0.5 * units) / units * 0.5 if pattern == "2:4" else round(scheduled * units) / units
            )
            assert pruner.sparsities[layer] == pytest.approx(pruned, abs=1e-12)
        before = after
    assert pruner.step_count == 19
    if pattern == "2:4":
        for module in masked(model).values():
            assert set(mask_of(module).reshape(-1, 4).sum(dim=1).tolist()) == {2}
    if pattern == "4x2":
        assert pruned_blocks(model[0], 4, 2) == round(0.8 * 64 * 32 / 8)


def test_magnitude_takes_the_smallest_weights_that_are_left() -> None:
    model, x = mlp(), vectors()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, PrunerConfig(0.75, schedule="linear", end_step=2, targets="0"))
    train_step(model, optimizer, x)
    weight = original_weight(model[0]).detach().clone()
    pruner.step()
    first = weight.abs() >= weight.abs().flatten().sort().values[round(0.375 * weight.numel())]
    assert torch.equal(mask_of(model[0]), first)
    with torch.no_grad():
        original_weight(model[0])[~first] = 100.0  # what happens underneath does not matter
        original_weight(model[0])[first.nonzero()[0, 0], first.nonzero()[0, 1]] = 0.0
    weight = torch.where(first, original_weight(model[0]).detach().abs(), -1.0)
    pruner.step()
    second = weight >= weight.flatten().sort().values[round(0.75 * weight.numel())]
    assert torch.equal(mask_of(model[0]), second)


def test_global_scope_prunes_by_one_threshold() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[:, :16] *= 1e-3  # half of it hardly matters
    pruner = Pruner(model, PrunerConfig(0.5, schedule="one-shot", scope="global"))
    scores = [m.weight.detach().double().abs() for m in mlp() if isinstance(m, nn.Linear)]
    scores[0][:, :16] *= 1e-3
    everything = torch.cat([(score / score.mean()).flatten() for score in scores])
    threshold = everything.sort().values[round(0.5 * everything.numel())]
    for module, score in zip([model[0], model[2], model[4]], scores, strict=True):
        assert float(((score / score.mean() >= threshold) == mask_of(module)).double().mean()) > 0.999  # float32 ties
    assert pruner.sparsity == pytest.approx(0.5, abs=1e-3)
    assert pruner.sparsities["0"] > 0.55


def test_movement_scores_are_minus_weight_times_dense_gradient() -> None:
    """Of masked weights too, over several backwards a step, with the weights that the forward saw."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    fc.pruning.apply_mask(model, torch.rand(4, 6) > 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner = Pruner(model, PrunerConfig(0.7, "unstructured", "movement", schedule="one-shot", start_step=3))
    mask, expected = mask_of(model).clone(), torch.zeros(4, 6)
    for step in range(3):
        optimizer.zero_grad()
        for batch in vectors(2):
            x = batch[:, :6]
            weight = original_weight(model).detach().clone()
            dense = torch.where(mask, weight, 0.0).requires_grad_()
            (torch.nn.functional.linear(x, dense, model.bias.detach()) - 1).square().sum().backward()
            (model(x) - 1).square().sum().mul(1.0).backward()
            expected -= weight * dense.grad
        optimizer.step()
        state = pruner.state_dict()["scores"]
        assert len(state) == (step > 0)
        pruner.step()
        torch.testing.assert_close(pruner.state_dict()["scores"][""], expected, rtol=1e-5, atol=1e-5)
    ranked = torch.where(mask, expected, -torch.inf)
    assert torch.equal(mask_of(model), ranked >= ranked.flatten().sort().values[round(0.7 * 24)])


def test_taylor_scores_start_anew_at_each_update() -> None:
    model, x = nn.Linear(32, 4), vectors()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(
        model, PrunerConfig(0.5, criterion="taylor", schedule="linear", start_step=2, end_step=4, frequency=2)
    )
    totals = torch.zeros(4, 32)
    for step in range(1, 4):
        weight = model.weight.detach().clone()
        train_step(model, optimizer, x)
        totals += (weight * original_weight(model).grad).abs()
        pruner.step()
        if step == 2:
            totals.zero_()
            assert pruner.state_dict()["scores"] == {}
    torch.testing.assert_close(pruner.state_dict()["scores"][""], totals)


def test_gradients_are_needed() -> None:
    model = mlp()
    pruner = Pruner(model, PrunerConfig(0.5, criterion="taylor", schedule="one-shot", start_step=1))
    with pytest.raises(RuntimeError, match=r"Pruner.step: 'taylor' needs the gradient of layer '0'.*no backward"):
        pruner.step()
    assert pruner.step_count == 0
    assert pruner.sparsity == 0.0


def test_a_step_with_infinite_gradients_counts_nothing() -> None:
    model, x = mlp(), vectors()[0]
    pruner = Pruner(model, PrunerConfig(0.5, criterion="movement", schedule="one-shot", start_step=3))
    (model(x).sum() * torch.inf).backward()
    pruner.step()
    assert not any(bool(total.any()) for total in pruner.state_dict()["scores"].values())


def test_nan_weights_are_named() -> None:
    model = mlp()
    pruner = Pruner(model, PrunerConfig(0.5, schedule="one-shot", start_step=1))
    with torch.no_grad():
        original_weight(model[2])[0, 0] = torch.nan
    before = masks_of(model)
    with pytest.raises(ValueError, match=r"Pruner.step: layer '2': scores hold NaN"):
        pruner.step()
    assert all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())


def test_initial_sparsity_and_one_shot() -> None:
    model = mlp()
    pruner = Pruner(model, PrunerConfig(0.75, schedule="one-shot", start_step=2, initial_sparsity=0.25))
    found = [pruner.sparsity]
    for _ in range(3):
        pruner.step()
        found.append(pruner.sparsity)
    assert found == [0.25, 0.25, 0.75, 0.75]


def test_an_earlier_mask_stays_in_force() -> None:
    model = fc.prune(mlp(), 0.5, "4x4", permute="inputs", ignore="4")
    earlier = masks_of(model)
    pruner = Pruner(model, PrunerConfig(0.75, "4x4", schedule="one-shot", start_step=1, ignore="4"))
    assert pruner.sparsity == 0.5
    pruner.step()
    assert pruner.sparsity == 0.75
    for name, mask in masks_of(model).items():
        assert not bool((mask & ~earlier[name]).any())
        inputs = fc.pruning.permutation_of(model.get_submodule(name))[0]
        blocks = mask[:, inputs].reshape(mask.shape[0] // 4, 4, -1, 4).sum(dim=(1, 3))
        assert set(blocks.unique().tolist()) == {0, 16}


def test_convolutions_and_what_cannot_be_pruned(caplog: pytest.LogCaptureFixture) -> None:
    model = conv_net()
    with caplog.at_level(logging.WARNING, logger="fastcompress"):
        pruner = Pruner(model, PrunerConfig(0.5, "4x4", schedule="one-shot"))
    assert "Pruner: 2 layers stay dense" in caplog.text
    assert set(pruner.sparsities.values()) == {0.5}
    model(images()[0]).sum().backward()
    assert pruning_of(model)["4"].action == "skipped"
    assert pruning_of(model)["3"].achieved == 0.5
    pruned_blocks(model[3], 4, 4)


def test_tied_weights_have_one_mask() -> None:
    model, x = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)]), vectors()[0]
    model[1].weight = model[0].weight
    pruner = Pruner(model, PrunerConfig(0.5, criterion="movement", schedule="one-shot", start_step=1))
    weight = original_weight(model[0]).detach().clone()
    model[1](model[0](x)).square().sum().backward()
    pruner.step()
    assert torch.equal(mask_of(model[0]), mask_of(model[1]))
    assert sparsity_of(model[0]) == 0.5
    gradient = original_weight(model[0]).grad
    torch.testing.assert_close(pruner.state_dict()["scores"]["0"], -weight * gradient, rtol=1e-4, atol=1e-4)


def test_each_layer_has_its_own_sparsity() -> None:
    model = mlp()
    config = PrunerConfig({"0": 0.5, "2": 0.75}, schedule="linear", start_step=1, end_step=3, initial_sparsity=0.25)
    pruner = Pruner(model, config)
    found = []
    for _ in range(3):
        found.append(pruner.sparsities)
        pruner.step()
    assert found == [{"0": 0.25, "2": 0.25}, {"0": 0.25, "2": 0.25}, {"0": 0.375, "2": 0.5}]
    assert pruner.sparsities == {"0": 0.5, "2": 0.75}
    assert pruner.sparsity == (0.5 + 0.75) / 2  # both have 2048 weights
    assert mask_of(model[4]) is None


def test_the_optimizer_forgets_pruned_weights() -> None:
    model, x = mlp(), vectors()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    pruner = Pruner(model, PrunerConfig(0.5, schedule="one-shot", start_step=3), optimizer)
    for _ in range(3):
        train_step(model, optimizer, x)
        pruner.step()
    for module in masked(model).values():
        state, mask = optimizer.state[original_weight(module)], mask_of(module)
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert bool((state[key][~mask] == 0).all())
            assert bool((state[key][mask] != 0).any())
        assert float(state["step"]) == 3


def test_rewinding_to_early_values() -> None:
    model, x = mlp(), vectors()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    config = PrunerConfig(0.875, schedule="iterative", start_step=4, end_step=8, rounds=3, rewind_step=2)
    pruner = Pruner(model, config, optimizer)
    early: dict[str, Tensor] = {}
    found = []
    for step in range(1, 10):
        train_step(model, optimizer, x)
        pruner.step()
        found.append(round(pruner.sparsity, 3))
        if step == 2:
            early = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        same = (
            all(torch.equal(parameter, early[name]) for name, parameter in model.named_parameters()) if early else False
        )
        assert same == (step in (2, 4, 6, 8))
        assert (len(optimizer.state) == 0) == (step in (4, 6, 8))
    assert found == [0, 0, 0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m, c: Pruner(3, c), TypeError, "Pruner: model must be a torch.nn.Module, got int"),
        (lambda m, c: Pruner(m, 0.5), TypeError, "Pruner: config must be a PrunerConfig, got float"),
        (lambda m, c: Pruner(m, c, "adam"), TypeError, "Pruner: optimizer must be a torch.optim.Optimizer"),
        (
            lambda m, c: Pruner(m, c, torch.optim.SGD(mlp().parameters())),
            ValueError,
            "Pruner: optimizer holds none of the weights",
        ),
        (lambda m, c: Pruner(m, c.replace(targets="9")), ValueError, "Pruner: targets entry '9' matches no layer"),
        (
            lambda m, c: Pruner(m, c.replace(pattern="7x1")),
            ValueError,
            "(?s)Pruner: Sequential has no layer that can be pruned.*pattern 7x1 needs outputs divisible by 7",
        ),
    ],
)
def test_wrong_arguments(make: Callable[..., Any], error: type[Exception], message: str) -> None:
    model = mlp()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        make(model, PrunerConfig(0.5, end_step=3))
    assert same(model, before)


def test_finishing() -> None:
    model, x = mlp(), vectors()[0]
    pruner = Pruner(model, PrunerConfig(0.5, criterion="movement", start_step=1, end_step=3, targets="0"))
    for _ in range(3):
        model(x).sum().backward()
        pruner.step()
    assert pruner.finish() is pruner.finish() is model
    assert mask_of(model[0]) is not None
    decision = pruning_of(model)["0"]
    assert (decision.action, decision.asked, decision.achieved, decision.retained) == ("pruned", 0.5, 0.5, None)
    assert pruning_of(model).config["schedule"] == "cubic"
    assert all(step.product_probe is None for step in model.modules() if isinstance(step, fc.pruning.Mask))
    with pytest.raises(RuntimeError, match=r"Pruner.step: finish\(\) was called"):
        pruner.step()
