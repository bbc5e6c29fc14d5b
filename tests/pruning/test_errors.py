"""Hostile arguments and failures of user code: clear messages, and the model is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.pruning import prune, pruning_of

from .models import mlp, same, snapshot, vectors


class Failing(Exception):
    pass


def fail(*args: Any) -> Any:
    raise Failing("on purpose")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"prune: sparsity must lie in \[0, 1\)"),
        ({"pattern": "16y4"}, ValueError, "prune: pattern '16y4' is unknown"),
        ({"criterion": "wand"}, ValueError, "prune: criterion 'wand' is unknown; .* did you mean 'wanda'"),
        ({"targets": "nothing"}, ValueError, "prune: targets entry 'nothing' matches no layer that can be pruned"),
        ({"sparsity": {"nix": 0.5}}, ValueError, "prune: sparsity entry 'nix' matches no layer that can be pruned"),
        ({"criterion": "wanda"}, ValueError, "prune: criterion 'wanda' needs calibration_data: an iterable of batches"),
        ({"criterion": "taylor"}, ValueError, "prune: criterion 'taylor' needs calibration_data"),
        ({"criterion": "sparsegpt"}, ValueError, "prune: criterion 'sparsegpt' needs calibration_data"),
        ({"criterion": "wanda", "calibration_data": []}, ValueError, "prune: calibration_data yielded no batches"),
        ({"criterion": "wanda", "calibration_data": 3}, TypeError, "prune: calibration_data must be an iterable of"),
        ({"criterion": "wanda", "calibration_data": [3]}, TypeError, "prune: a calibration batch is a int"),
        (
            {"criterion": "wanda", "calibration_data": [torch.ones(0, 32)]},
            ValueError,
            "prune: calibration batch 0 is e",
        ),
        ({"criterion": "wanda", "calibration_data": [torch.ones(2, 31)]}, RuntimeError, "shapes cannot be multiplied"),
        ({"criterion": "taylor", "calibration_data": vectors(), "loss_fn": fail}, Failing, "^on purpose"),
        ({"criterion": "wanda", "calibration_data": vectors(), "forward_fn": fail}, Failing, "^on purpose"),
        ({"forward_fn": 3}, TypeError, r"prune: forward_fn must be callable as forward_fn\(model, batch\), got 3"),
        ({"loss_fn": 3}, TypeError, r"prune: loss_fn must be callable as loss_fn\(output, batch\), got 3"),
    ],
)
def test_errors_change_nothing(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    model = mlp().train()
    model[2].weight.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        prune(model, **({"sparsity": 0.5, "inplace": True} | kwargs))
    assert same(model, before)


def test_models_that_cannot_be_copied_or_are_none() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no")

    with pytest.raises(TypeError, match=r"prune: Stubborn cannot be copied \(RuntimeError: no\); pass inplace=True"):
        prune(Stubborn(8, 8), 0.5)
    with pytest.raises(TypeError, match=r"prune: model must be a torch\.nn\.Module, got int"):
        prune(3, 0.5)  # type: ignore[arg-type]


NO_USE = [
    ("wanda", float("nan"), "its inputs in calibration held NaN or infinity"),
    ("sparsegpt", float("inf"), "its inputs in calibration held NaN or infinity"),
    ("taylor", float("nan"), "its gradients in calibration held NaN or infinity"),
    ("wanda", 0.0, "its inputs were zero throughout calibration"),
    ("sparsegpt", 0.0, "its inputs were zero throughout calibration"),
    ("taylor", 0.0, "its gradients were zero throughout calibration"),
]


@pytest.mark.parametrize(("criterion", "value", "reason"), NO_USE)
def test_data_of_no_use_is_reported_for_each_layer(
    criterion: str, value: float, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = nn.Sequential(nn.Linear(8, 8, bias=False)), [torch.full((4, 8), value)]
    pruned = prune(model, 0.5, "4x4", criterion, calibration_data=data)
    assert type(pruned[0]) is nn.Linear
    assert (pruning_of(pruned)["0"].action, pruning_of(pruned)["0"].reason) == ("skipped", reason)
    assert reason in caplog.text
    with pytest.raises(ValueError, match=rf"layer '0' \(Linear\) is named in targets but cannot be pruned: {reason}"):
        prune(model, 0.5, "4x4", criterion, calibration_data=data, targets="0")


def test_weights_that_hold_nan_are_named() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"layer '2' .* cannot be pruned: its weight holds NaN or infinity"):
        prune(model, {"0": 0.5, "2": 0.5})


EMPTY = {
    "list": ([], "calibration_data yielded no batches; give at least one"),
    "iterator": (iter(()), "calibration_data yielded no batches; give at least one"),
    "tensor": (torch.ones(0, 32), r"calibration batch 0 is empty \(shape \[0, 32\]\)"),
    "second": ([torch.ones(4, 32), torch.ones(0, 32)], r"calibration batch 1 is empty \(shape \[0, 32\]\)"),
    "tuple": ([()], "a calibration batch is an empty tuple or list"),
}


@pytest.mark.parametrize(("data", "message"), EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "taylor"])
def test_empty_calibration_data(criterion: str, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"prune: {message}"):
        prune(mlp(), 0.5, criterion=criterion, calibration_data=data)


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, float("nan"), float("inf"), True, None, "0.5", [0.5]])
@pytest.mark.parametrize("keyed", [False, True])
def test_sparsities(sparsity: Any, keyed: bool) -> None:
    name = r"sparsity\['0'\]" if keyed else "sparsity"
    with pytest.raises((TypeError, ValueError), match=rf"prune: {name} must .*\[0, 1\).*got"):
        prune(mlp(), {"0": sparsity} if keyed else sparsity)
