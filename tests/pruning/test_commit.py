"""Masks put in place: again and again, all or none, and with a record."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.pruning import (
    CRITERIA,
    PruneDecision,
    mask_of,
    permutation_of,
    permuted,
    prune,
    pruning_of,
    sparsity_of,
)
from fastcompress.pruning.record import PRUNING_ATTRIBUTE

from .models import mlp, snapshot, vectors


def test_pruning_again_adds_to_the_masks() -> None:
    first = prune(mlp(), 0.5, targets="0")
    second = prune(first, 0.75, targets=("0", "2"))
    assert sparsity_of(second[0]) == 0.75
    assert not bool(mask_of(second[0])[~mask_of(first[0])].any())
    third = prune(second, 0.8, targets="4")
    assert [(d.name, d.action, d.asked) for d in pruning_of(third)] == [
        ("0", "pruned", 0.75),
        ("2", "pruned", 0.75),
        ("4", "pruned", 0.8),
    ]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradual_pruning_keeps_the_earlier_zeros(criterion: str) -> None:
    first = prune(mlp(), 0.5, "unstructured", "random", seed=5)
    second = prune(first, 0.8, "unstructured", criterion, calibration_data=vectors())
    assert sparsity_of(second[0]) == round(0.8 * 2048) / 2048
    assert not bool(mask_of(second[0])[~mask_of(first[0])].any())


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_while_masks_are_put_in_place_takes_all_back(earlier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcompress.pruning import commit

    model = mlp()
    if earlier:
        prune(model, 0.25, "4x4", inplace=True, ignore="4")
    before, record = snapshot(model), pruning_of(model)
    real, calls = commit.apply_mask, []

    def second_fails(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        calls.append(module)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(module, *args, **kwargs)

    monkeypatch.setattr(commit, "apply_mask", second_fails)
    with pytest.raises(KeyboardInterrupt):
        prune(model, 0.5, "4x4", "sparsegpt", calibration_data=vectors(), inplace=True, ignore="4")
    after = snapshot(model)
    assert after["state"].keys() == before["state"].keys()
    assert all(torch.equal(after["state"][key], before["state"][key]) for key in before["state"])
    assert after["modules"] == before["modules"]
    assert pruning_of(model) is record


def test_the_record() -> None:
    pruned = prune(mlp(), 0.5, "4x4", ignore="4")
    record = pruning_of(copy.deepcopy(pruned))
    assert getattr(pruned, PRUNING_ATTRIBUTE) == record
    data = json.loads(json.dumps(record.to_json()))
    assert data["config"]["pattern"] == "4x4"
    assert data["layers"][0] == {
        "name": "0",
        "kind": "Linear",
        "action": "pruned",
        "pattern": "4x4",
        "asked": 0.5,
        "achieved": 0.5,
        "retained": record["0"].retained,
        "reason": "magnitude, local",
        "gain": None,
    }
    with pytest.raises(KeyError):
        record["nothing"]
    assert pruning_of(3) is None


@functools.cache
def first_of_several() -> nn.Module:
    return prune(mlp(), 0.4, "4x4", permute="both", ignore="4")


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("permute", [False, "both"])
def test_gradual_pruning_keeps_the_order_of_the_first_mask(criterion: str, permute: bool | str) -> None:
    """The earlier blocks are whole in that order only; another one would prune more than was asked for."""
    model = first_of_several()
    first = permutation_of(model[0])
    for sparsity in (0.6, 0.8):
        model = prune(
            model, sparsity, "4x4", criterion, calibration_data=vectors(), targets=("0", "2"), permute=permute
        )
        inputs, outputs = permutation_of(model[0])
        assert torch.equal(inputs, first[0])
        assert torch.equal(outputs, first[1])
        assert sparsity_of(model[0]) == round(sparsity * 128) / 128
        kept = permuted(mask_of(model[0]), inputs, outputs).reshape(16, 4, 8, 4).sum((1, 3))
        assert set(kept.unique().tolist()) == {0, 16}


def test_global_pruning_keeps_the_order_of_the_first_mask() -> None:
    first = prune(mlp(), 0.5, "4x4", permute="inputs", ignore="4")
    second = prune(first, 0.75, "4x4", scope="global", ignore="4")
    dead = 0
    for index in (0, 2):
        assert torch.equal(permutation_of(second[index])[0], permutation_of(first[index])[0])
        kept = permuted(mask_of(second[index]), *permutation_of(second[index]))
        kept = kept.reshape(kept.shape[0] // 4, 4, -1, 4).sum((1, 3))
        assert set(kept.unique().tolist()) == {0, 16}
        dead += int((kept == 0).sum())
    assert dead == 0.75 * 256


def test_a_failure_takes_back_orders_that_an_earlier_mask_did_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcompress.pruning import commit

    model = prune(mlp(), 0.25, "4x4", ignore="4")
    before, real = copy.deepcopy(model.state_dict()), commit.PruneDecision

    def fails(*args: Any) -> PruneDecision:
        if args[0] == "2":
            assert permutation_of(model[2])[1] is not None  # it is in place already
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(commit, "PruneDecision", fails)
    with pytest.raises(MemoryError):
        prune(model, 0.5, "4x4", permute="outputs", inplace=True, ignore="4")
    assert permutation_of(model[0]) == permutation_of(model[2]) == (None, None)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
