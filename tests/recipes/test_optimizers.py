"""The optimizer of a run: by factory, by example, by default; and what happens to it when the model shrinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.pruning import mask_of
from fastcompress.recipes import QAT, Distillation, Pruning
from fastcompress.recipes.optimizers import LEARNING_RATES, OptimizerSource, set_rate

from .small import loader, network, same_state

KINDS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adamax", "Adadelta", "ASGD"]


def _compress(model: nn.Module, recipe: Any, **options: Any) -> nn.Module:
    options = {"progress": False, "epochs": 2, "convert": False, **options}
    return fc.compress(model, recipe, loader(), **options).trained


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_and_a_factory_give_the_same_weights(kind: str) -> None:
    recipe = [Pruning(0.5, "4x4", end=1)]
    make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    by_example = _compress(model, recipe, optimizer=make(model.parameters(), lr=0.02))
    by_factory = _compress(network(), recipe, optimizer=lambda p: make(p, lr=0.02))
    assert same_state(by_example, by_factory)
    assert not torch.equal(by_factory.get_submodule("9").bias, model[9].bias)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_factory_must_use_what_it_is_given() -> None:
    """Otherwise it would train the caller's model, or nothing."""
    model = network()
    with pytest.raises(ValueError, match="made one of parameters that it was not given; compress trains a copy"):
        _compress(model, [], optimizer=lambda p: torch.optim.SGD(model.parameters(), lr=0.1))


def test_parameters_that_an_example_leaves_out_stay() -> None:
    model = network()
    trained = _compress(model, [QAT(method="lsq")], optimizer=torch.optim.SGD(model[9].parameters(), lr=0.5))
    moved = {
        name: not torch.equal(value, dict(trained.named_parameters()).get(name, value))
        for name, value in model.named_parameters()
    }
    assert [name for name, value in moved.items() if value] == ["9.bias"]
    original: Any = trained.get_submodule("9")
    assert not torch.equal(original.parametrizations.weight.original, model[9].weight)
    steps = [value for name, value in trained.named_parameters() if name.endswith("step")]
    assert any(bool((value != 1.0).any()) for value in steps)  # learned scales are the recipe's, and trained


def test_groups_follow_the_names_when_channels_are_removed() -> None:
    pytest.importorskip("torch_pruning")
    model = network()
    head = [p for name, p in model.named_parameters() if name.startswith("9.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("9.")]
    groups = [{"params": rest, "lr": 0.0}, {"params": head, "lr": 0.5}]
    recipe = [Pruning(0.5, "channel", schedule="one-shot", start=0, round_to=4), QAT(start=1)]
    # No weight decay and no rate: what is left of the rest is what channel pruning has kept, bit for bit.
    trained = _compress(model, recipe, epochs=3, optimizer=torch.optim.SGD(groups, lr=0.1))
    kept: Any = trained.get_submodule("0")
    rows = {tuple(row.flatten().tolist()) for row in kept.parametrizations.weight.original}
    assert len(rows) == 8
    assert rows <= {tuple(row.flatten().tolist()) for row in model[0].weight}
    assert not torch.equal(trained.get_submodule("9").bias, model[9].bias)  # type: ignore[arg-type]


def test_settings_of_groups_are_what_a_run_is_known_by() -> None:
    def described(rate: float) -> Any:
        model = network()
        source = OptimizerSource(lambda p: torch.optim.SGD([{"params": p, "lr": rate}], lr=0.1, momentum=0.9), model)
        return source.to_json(model)

    assert described(0.1) == described(0.1)
    assert described(0.1) != described(0.2)


def test_the_cosine_rises_and_falls() -> None:
    """Against the formula, at the places where it changes."""
    factor = LEARNING_RATES["cosine"]
    assert factor(0.0) == 0.0
    assert factor(0.025) == pytest.approx(0.5)
    assert factor(0.05) == pytest.approx(1.0)
    assert factor(0.05 + 0.95 / 2) == pytest.approx(0.5)
    assert factor(1.0) == pytest.approx(0.0, abs=1e-12)


def test_rates_are_factors_of_each_groups_own() -> None:
    model = network()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.4}, {"params": model[9].parameters()}], 0.1)
    for factor in (0.5, 0.25, 1.0):
        set_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.4 * factor, 0.1 * factor]
    seen: list[float] = []
    result = fc.compress(
        network(), [], loader(), epochs=2, progress=False, convert=False, learning_rate=lambda p: seen.append(p) or 0.5
    )
    assert seen == [step / 12 for step in range(12)]
    assert [row.learning_rate for row in result.history.rows] == [0.5e-3] * 2


@pytest.mark.parametrize("schedule", ["constant", "iterative"])
def test_pruning_after_channels_counts_from_there(schedule: str) -> None:
    pytest.importorskip("torch_pruning")
    more: dict[str, Any] = {"end": 3, "rewind": 1.5, "rounds": 2, "start": 2} if schedule == "iterative" else {}
    fine = Pruning(0.5, criterion="movement", schedule=schedule, **{"start": 1, **more})
    seen: list[float] = []

    def score(model: nn.Module) -> float:
        mask = mask_of(model.get_submodule("3"))
        seen.append(0.0 if mask is None else 1.0 - float(mask.float().mean()))
        return 0.0

    _compress(network(), [Pruning(0.5, "channel", end=1, round_to=4), fine], epochs=4, eval_fn=score)
    # The first epoch's mask is that of channels; the last call is for the dense model or the result.
    expected = {"constant": [0.5, 0.5, 0.5], "iterative": [0.2929, 0.5, 0.5]}[schedule]
    assert seen[1:4] == pytest.approx(expected, abs=0.01)


def test_rewinding_to_before_channels_were_removed_is_refused() -> None:
    fine = Pruning(0.5, schedule="iterative", rounds=2, start=2, end=3, rewind=0.5)
    with pytest.raises(ValueError, match=r"rewind=0\.5 goes back to weights from before pattern 'channel'"):
        _compress(network(), [Pruning(0.5, "channel", end=1, round_to=4), fine, Distillation("dense")], epochs=4)
