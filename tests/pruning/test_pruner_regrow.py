"""RigL: connections move to where the gradient is large, and the sparsity stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastcompress.pruning import Pruner, PrunerConfig, mask_of, masked, parse_pattern
from fastcompress.pruning.mask import original_weight
from fastcompress.pruning.mask_updates import regrown

from .models import mlp, pruned_blocks, vectors


def rigl(pattern: str = "unstructured", sparsity: float = 0.8, **kwargs: object) -> PrunerConfig:
    kwargs = {"schedule": "constant", "end_step": 12, "frequency": 3, "regrow": "rigl", "ignore": "4"} | kwargs
    return PrunerConfig(sparsity, pattern, **kwargs)  # type: ignore[arg-type]


def test_one_move_against_the_paper() -> None:
    """Algorithm 1 written out with sets, on an odd mask."""
    generator = torch.Generator().manual_seed(3)
    scores, gradient = torch.rand(6, 10, generator=generator), torch.randn(6, 10, generator=generator)
    mask = torch.rand(6, 10, generator=generator) < 0.4
    active = {int(i) for i in mask.flatten().nonzero()}
    count = round(0.25 * len(active))
    drop = set(sorted(active, key=lambda i: float(scores.flatten()[i]))[:count])
    others = set(range(60)) - (active - drop)
    grow = set(sorted(others, key=lambda i: -abs(float(gradient.flatten()[i])))[:count])
    found = regrown(scores, gradient, mask, parse_pattern("unstructured"), 0.25)
    assert {int(i) for i in found.flatten().nonzero()} == (active - drop) | grow
    assert grow - active
    assert drop - grow


def test_nothing_moves_with_a_share_too_small() -> None:
    mask = torch.tensor([[True, True, False, False]])
    for pattern in ("unstructured", "2:4", "1x2"):
        assert torch.equal(regrown(torch.ones(1, 4), torch.ones(1, 4), mask, parse_pattern(pattern), 0.1), mask)


def test_nm_moves_within_the_group() -> None:
    scores = torch.tensor([[1.0, 2.0, 9.0, 9.0, 5.0, 6.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False, False] * 2])
    gradient = torch.tensor([[0.0, 0.0, 1.0, -2.0, 0.0, 0.0, 3.0, 1.0]])
    one = regrown(scores, gradient, mask, parse_pattern("2:4"), 0.25)  # one of four: the weakest, in the first group
    assert one.tolist() == [[False, True, False, True, True, True, False, False]]
    both = regrown(scores, gradient, mask, parse_pattern("2:4"), 1.0)  # at most one in each group
    assert both.tolist() == [[False, True, False, True, False, True, True, False]]


@pytest.mark.parametrize("pattern", ["unstructured", "4x2", "2:4"])
@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_sparsity_stays_and_new_weights_start_at_zero(pattern: str, make: str) -> None:
    model, x = mlp(), vectors()[0]
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        if make == "sgd"
        else torch.optim.Adam(model.parameters(), lr=0.02)
    )
    config = rigl(pattern, 0.5 if pattern == "2:4" else 0.8)
    pruner = Pruner(model, config, optimizer)
    sparsity, moved = pruner.sparsity, 0
    assert sparsity == pytest.approx(config.sparsity, abs=1e-3)
    for step in range(1, 16):
        before = {name: mask_of(module).clone() for name, module in masked(model).items() if name != "4"}
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        pruner.step()
        assert pruner.sparsity == sparsity
        for name, old in before.items():
            module = model.get_submodule(name)
            mask, weight = mask_of(module), original_weight(module)
            new = mask & ~old
            if step not in (3, 6, 9):
                assert not bool(new.any())
                continue
            moved += int(new.sum())
            units = {"unstructured": 1, "2:4": 1, "4x2": 8}[pattern]
            assert int(new.sum()) <= round(config.regrow_share(step) * int(old.sum()) / units) * units
            assert bool((module.weight[new] == 0).all())
            for state in optimizer.state[weight].values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    assert bool((state[new | ~mask] == 0).all())
            if pattern == "2:4":
                assert set(mask.reshape(-1, 4).sum(dim=1).tolist()) == {2}
            if pattern == "4x2":
                pruned_blocks(module, 4, 2)
    assert moved > 0


def test_the_gradient_is_dense_and_of_the_last_step_only() -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 8)
    pruner = Pruner(model, rigl(sparsity=0.75, end_step=4, frequency=2, regrow_fraction=0.5, ignore=()))
    mask = mask_of(model).clone()
    for scale, x in zip((100.0, 1.0), vectors(2), strict=True):  # the first step's gradient must not matter
        (scale * (model(x) - 1).square().sum()).backward()
        weight = model.weight.detach().clone().requires_grad_()
        (torch.nn.functional.linear(x, weight, model.bias) - 1).square().sum().backward()
        assert mask_of(model).equal(mask)
        pruner.step()
    count = round(0.5 / 2 * (1 + math.cos(math.pi / 2)) * int(mask.sum()))
    staying = torch.where(mask, weight.detach().abs(), 0.0).flatten().topk(int(mask.sum()) - count).indices
    wanted = weight.grad.abs().flatten().index_fill(0, staying, -1.0).topk(count).indices
    expected = torch.zeros(256, dtype=torch.bool)
    expected[staying] = expected[wanted] = True
    assert torch.equal(mask_of(model).flatten(), expected)
    assert bool((mask_of(model) & ~mask).any())


def test_together_with_a_growing_sparsity_and_movement() -> None:
    model, x = mlp(), vectors()[0]
    config = rigl(schedule="cubic", criterion="movement", start_step=1)
    pruner, optimizer = Pruner(model, config), torch.optim.SGD(model.parameters(), lr=0.05)
    grown = 0
    for step in range(1, 14):
        old = mask_of(model[0]).clone()
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        if pruner.step():
            assert pruner.sparsity == pytest.approx(config.sparsity_at(step), abs=1e-3)
            new = mask_of(model[0]) & ~old
            grown += int(new.sum())
            assert bool((pruner.state_dict()["scores"]["0"][new] == 0).all())  # what they did before they went is past
    assert grown > 0
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3)


def test_gradients_are_needed() -> None:
    model = mlp()
    pruner = Pruner(model, rigl(frequency=1))
    with pytest.raises(RuntimeError, match=r"Pruner.step: 'rigl' needs the gradient of layer '0'"):
        pruner.step()
