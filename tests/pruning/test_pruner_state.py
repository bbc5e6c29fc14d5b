"""A `Pruner` resumes bit for bit, and takes no state that is not its own."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.pruning import Pruner, PrunerConfig, mask_of, masked

from .models import mlp, vectors

CONFIGS = {
    "magnitude": PrunerConfig(0.8, start_step=2, end_step=14, frequency=3),
    "taylor": PrunerConfig(0.8, "4x2", "taylor", start_step=2, end_step=14, frequency=3),
    "movement": PrunerConfig(0.5, "2:4", "movement", start_step=2, end_step=14, frequency=3, ignore="4"),
    "random": PrunerConfig(0.8, criterion="random", start_step=2, end_step=14, frequency=3, seed=-5),
    "rigl": PrunerConfig(0.8, schedule="constant", end_step=14, frequency=3, regrow="rigl"),
    "rigl movement": PrunerConfig(0.8, criterion="movement", start_step=1, end_step=14, frequency=3, regrow="rigl"),
    "rewind": PrunerConfig(0.8, schedule="iterative", start_step=4, end_step=14, rounds=3, rewind_step=2),
}


class Run:
    """Everything that a training loop has, and saves."""

    def __init__(self, config: PrunerConfig) -> None:
        self.model = mlp()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02, weight_decay=0.01)
        self.pruner = Pruner(self.model, config, self.optimizer)

    def train(self, steps: range) -> None:
        batches = vectors()
        for step in steps:
            self.optimizer.zero_grad()
            (self.model(batches[step % 3]) - 1).square().mean().backward()
            self.optimizer.step()
            self.pruner.step()

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self.model, self.optimizer, self.pruner)], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        states = torch.load(file, weights_only=True)
        for part, state in zip((self.model, self.optimizer, self.pruner), states, strict=True):
            part.load_state_dict(state)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("killed_at", [1, 5, 12])
def test_resuming_gives_the_same_bits(name: str, killed_at: int) -> None:
    straight, first, second = (Run(CONFIGS[name]) for _ in range(3))
    straight.train(range(18))
    first.train(range(killed_at))
    file = first.save()
    first.train(range(killed_at, killed_at + 2))  # the saved state does not follow
    second.train(range(3))
    second.load(file)
    assert second.pruner.step_count == killed_at
    second.train(range(killed_at, 18))
    for key, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])
    assert second.pruner.sparsity == straight.pruner.sparsity > 0.3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: 3, TypeError, "state must be a dict from state_dict"),
        (lambda s: {}, ValueError, "state has no 'version'; it is no state of a Pruner"),
        (lambda s: s | {"version": 9}, ValueError, "state has version 9, this release reads 1"),
        (lambda s: s | {"step_count": -1}, ValueError, "step_count must be an int of at least 0, got -1"),
        (lambda s: s | {"step_count": 2.0}, ValueError, "step_count must be an int of at least 0, got 2.0"),
        (lambda s: s | {"scores": [1]}, TypeError, "scores must map names to tensors"),
        (lambda s: s | {"scores": {"9": torch.ones(2)}}, ValueError, r"scores of layer '9' with shape \[2\] do not"),
        (lambda s: s | {"scores": {"0": torch.ones(2)}}, ValueError, r"scores of layer '0' with shape \[2\] do not"),
    ],
)
def test_wrong_states(change: Any, error: type[Exception], message: str) -> None:
    run = Run(CONFIGS["movement"])
    run.train(range(5))
    before = run.pruner.state_dict()
    with pytest.raises(error, match=f"Pruner.load_state_dict: {message}"):
        run.pruner.load_state_dict(change(run.pruner.state_dict()))
    after = run.pruner.state_dict()
    assert after["step_count"] == before["step_count"] == 5
    assert all(torch.equal(after["scores"][name], value) for name, value in before["scores"].items())


def test_another_configuration_is_refused() -> None:
    saved = Run(CONFIGS["magnitude"]).pruner.state_dict()
    other = Run(CONFIGS["magnitude"].replace(sparsity=0.9)).pruner
    with pytest.raises(
        ValueError, match=r"sparsity was 0.8 when the state was saved and is 0.9 now; resume with the same"
    ):
        other.load_state_dict(saved)


def test_wrong_rewind_values() -> None:
    run = Run(CONFIGS["rewind"])
    run.train(range(3))
    state = run.pruner.state_dict()
    name = next(iter(state["rewind"]))
    for rewind, message in (
        ({**state["rewind"], name: torch.ones(1)}, rf"rewind value of parameter '{name}' with shape \[1\] does not"),
        ({key: value for key, value in state["rewind"].items() if key != name}, rf"parameter '{name}' is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            run.pruner.load_state_dict(state | {"rewind": rewind})


def test_a_step_with_nothing_due_leaves_everything_alone() -> None:
    """Neither are masks written nor weights read: the schedule alone decides."""
    model = mlp()
    pruner = Pruner(model, PrunerConfig(0.8, start_step=500, end_step=1000, frequency=100))
    versions = {name: mask_of(module)._version for name, module in masked(model).items()}
    with torch.no_grad():
        for module in masked(model).values():
            nn.init.constant_(module.parametrizations.weight.original, torch.nan)  # would be refused if it were read
    for _ in range(499):
        assert not pruner.step()
    assert {name: mask_of(module)._version for name, module in masked(model).items()} == versions
