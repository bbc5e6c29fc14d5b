"""A run that is killed at any step goes on to the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import fastcompress as fc
from fastcompress.errors import CheckpointError, TrainingDiverged

from .small import Killed, fragile, full_recipe, loader, network, same_state, samples

EPOCHS, STEPS = 3, 6


def _run(directory: Path | None, dies_at: int = -1, **changes: Any) -> fc.recipes.CompressionResult:
    options: dict[str, Any] = {"epochs": EPOCHS, "progress": False, "checkpoint_dir": directory, "convert": False}
    options |= {"eval_fn": lambda model: float(model(torch.ones(1, 1, 8, 8))[0, 0])}
    kinds = {key: changes.pop(key) for key in ("own_generator", "augmented") if key in changes}
    recipe = changes.pop("recipe", None) or full_recipe()
    model = changes.pop("model", None) or network(dropout=0.2)
    return fc.compress(model, recipe, fragile(loader(**kinds), dies_at), **{**options, **changes})


@pytest.mark.parametrize("every", [None, 1, 4])
@pytest.mark.parametrize("dies_at", [0, 1, 5, 6, 8, 16, 17])
def test_killed_at_a_step(tmp_path: Path, dies_at: int, every: int | None) -> None:
    whole = _run(None)
    with pytest.raises(Killed):
        _run(tmp_path, dies_at, checkpoint_every=every)
    result = _run(tmp_path, checkpoint_every=every)
    assert same_state(whole.trained, result.trained)
    plain = [{**row, "seconds": 0} for row in whole.history.to_json()]
    assert plain == [{**row, "seconds": 0} for row in result.history.to_json()]


@pytest.mark.parametrize("dies_at", [STEPS * EPOCHS + 2, STEPS * (EPOCHS + 1) + 4])
def test_killed_while_a_relaxed_model_trains_on(tmp_path: Path, dies_at: int) -> None:
    """`max_drop` adds an epoch for each change of a layer; what is done is not done again."""
    scores = {"eval_fn": lambda model: -float((model(torch.ones(1, 1, 8, 8)) - 7.0).square().sum()), "max_drop": 0.0}
    recipe = [fc.recipes.Pruning(0.5, "4x4", end=2), fc.recipes.Distillation("dense")]
    options: dict[str, Any] = {"recipe": recipe, "checkpoint_every": 2, **scores}
    whole = _run(None, **options)
    assert len(whole.history) > EPOCHS + 1
    with pytest.raises(Killed):
        _run(tmp_path, dies_at, **options)
    trained: list[Any] = []

    def counted(output: Any, batch: Any) -> torch.Tensor:
        trained.append(batch)
        return torch.nn.functional.cross_entropy(output, batch[1])

    resumed = _run(tmp_path, loss_fn=counted, **options)
    assert len(trained) == len(whole.history) * STEPS - dies_at  # it died behind a checkpoint
    assert same_state(whole.trained, resumed.trained)
    assert resumed.given_up == whole.given_up
    plain = [{**row, "seconds": 0} for row in whole.history.to_json()]
    assert plain == [{**row, "seconds": 0} for row in resumed.history.to_json()]


@pytest.mark.parametrize("own_generator", [True, False])
def test_killed_twice_with_shuffling_and_random_collation(tmp_path: Path, own_generator: bool) -> None:
    whole = _run(None, own_generator=own_generator)
    for dies_at in (4, 10):
        with pytest.raises(Killed):
            _run(tmp_path, dies_at, checkpoint_every=3, own_generator=own_generator)
    assert same_state(whole.trained, _run(tmp_path, own_generator=own_generator, checkpoint_every=3).trained)


@pytest.mark.parametrize("dies_at", [3, 6, 9, 15])
def test_killed_before_and_after_channels_are_removed(tmp_path: Path, dies_at: int) -> None:
    pytest.importorskip("torch_pruning")
    recipe = [
        fc.recipes.Pruning(0.5, pattern="channel", end=1, frequency=2, round_to=4),
        fc.recipes.Distillation("dense"),
        fc.recipes.QAT("W8A8", start=2),
    ]
    whole = _run(None, recipe=recipe)
    with pytest.raises(Killed):
        _run(tmp_path, dies_at, recipe=recipe, checkpoint_every=2)
    result = _run(tmp_path, recipe=recipe, checkpoint_every=2)
    assert same_state(whole.trained, result.trained)
    layer: Any = result.trained.get_submodule("0")
    assert layer.out_channels == 8


RECIPES: dict[str, list[fc.recipes.Stage]] = {
    "learned scales": [fc.recipes.QAT(start=0.5, freeze_at=2, method="lsq")],
    "movement and own average": [
        fc.recipes.Pruning(0.5, "1x4", "movement", end=2),
        fc.recipes.Distillation(fc.distillation.SelfDistillation("ema", decay=0.9)),
        fc.recipes.QAT(start=0.5, freeze_at=2),
    ],
    "regrowth": [fc.recipes.Pruning(0.5, schedule="constant", end=2, frequency=2, regrow="rigl")],
    "rewinding": [fc.recipes.Pruning(0.8, schedule="iterative", rounds=3, start=0.5, end=2, rewind=0.25)],
}


@pytest.mark.parametrize("dies_at", [2, 9, 14])
@pytest.mark.parametrize("name", RECIPES)
def test_killed_with_state_of_all_kinds(tmp_path: Path, name: str, dies_at: int) -> None:
    options: dict[str, Any] = {"recipe": RECIPES[name], "checkpoint_every": 2}
    options["optimizer"] = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)
    whole = _run(None, **options)
    with pytest.raises(Killed):
        _run(tmp_path, dies_at, **options)
    assert same_state(whole.trained, _run(tmp_path, **options).trained)


@pytest.mark.parametrize("every", [1, 4])
def test_killed_with_a_batch_sampler_that_has_a_generator(tmp_path: Path, every: int) -> None:
    """The generator is two objects below the loader, and must not go on from where the process left it."""

    def data() -> DataLoader[Any]:
        sampler = RandomSampler(samples(), generator=torch.Generator().manual_seed(3))
        return DataLoader(samples(), batch_sampler=BatchSampler(sampler, 16, drop_last=False))

    calls = iter(range(1000))

    def dying(output: Any, batch: Any) -> torch.Tensor:
        if next(calls) == 9:
            raise Killed
        return torch.nn.functional.cross_entropy(output, batch[1])

    recipe = [fc.recipes.Pruning(0.5, "4x4", end=2)]
    options: dict[str, Any] = {"epochs": EPOCHS, "progress": False, "convert": False}
    whole = fc.compress(network(0.2), recipe, data(), **options)
    options |= {"checkpoint_dir": tmp_path, "checkpoint_every": every}
    with pytest.raises(Killed):
        fc.compress(network(0.2), recipe, data(), loss_fn=dying, **options)
    assert same_state(whole.trained, fc.compress(network(0.2), recipe, data(), **options).trained)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = _run(tmp_path)
    again = _run(tmp_path, dies_at=1)  # would raise if more were drawn than the example batch
    assert same_state(first.trained, again.trained)
    assert len(again.history) == EPOCHS


def test_the_callers_model_and_random_numbers_are_untouched(tmp_path: Path) -> None:
    model = network()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    _run(tmp_path, model=model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"epochs": 4}, "epochs was 3 and is 4"),
        ({"recipe": [fc.recipes.Pruning(0.5, pattern="4x4", end=2, frequency=2)]}, "stages"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer.kind was 'AdamW' and is 'SGD'"),
        ({"optimizer": lambda p: torch.optim.AdamW([{"params": p, "lr": 0.3}])}, "optimizer.groups"),
        ({"autocast": torch.bfloat16}, "autocast"),
        ({"model": network(0.2)[:9].append(torch.nn.Linear(16, 4))}, "model was"),
    ],
)
def test_another_recipe_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(Killed):
        _run(tmp_path, 8)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="belongs to another run") as caught:
        _run(tmp_path, **change)
    assert named in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    teacher = network()
    recipe = [fc.recipes.Distillation(teacher)]
    with pytest.raises(Killed):
        _run(tmp_path, 8, recipe=recipe)
    with torch.no_grad():
        teacher[9].weight[0, 0] += 1.0
    with pytest.raises(ValueError, match=r"teachers\[0\] was"):
        _run(tmp_path, recipe=recipe)


class _PlainLoss(fc.distillation.DistillationLoss):
    """A loss without a representation of its own: Python's has an address in it."""

    label, uses_taps, weight = "plain", False, 1.0

    def check(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        """Any two go."""

    def value(self, student: torch.Tensor, teacher: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        return (student - teacher).square().mean()


def test_a_loss_of_ones_own_is_recognised(tmp_path: Path) -> None:
    first, second = _PlainLoss(), _PlainLoss()
    assert repr(first) != repr(second)
    with pytest.raises(Killed):
        _run(tmp_path, 8, recipe=[fc.recipes.Distillation("dense", losses=(first,))])
    assert len(_run(tmp_path, recipe=[fc.recipes.Distillation("dense", losses=(second,))]).history) == EPOCHS


def test_a_cut_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _run(tmp_path, 8)
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"last\.pt: not a readable checkpoint"):
        _run(tmp_path)


def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def spoiled(output: Any, batch: Any) -> torch.Tensor:
        spoiled.calls += 1  # type: ignore[attr-defined]
        loss = torch.nn.functional.cross_entropy(output, batch[1])
        return loss * float("nan") if spoiled.calls == 9 else loss  # type: ignore[attr-defined]

    spoiled.calls = 0  # type: ignore[attr-defined]
    recipe = [fc.recipes.Pruning(0.5, pattern="4x4", end=2, frequency=2)]
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 9 \(epoch 2") as caught:
        _run(tmp_path, recipe=recipe, loss_fn=spoiled, checkpoint_every=4)
    assert str(tmp_path / "last.pt") in str(caught.value)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 8
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


_SCRIPT = """
import os, signal, sys
import fastcompress as fc
from tests.recipes.small import full_recipe, loader, network

class Data:
    def __init__(self): self.data, self.count = loader(), 0
    def __len__(self): return len(self.data)
    @property
    def generator(self): return self.data.generator
    def __iter__(self):
        for batch in self.data:
            self.count += 1
            if self.count == 11: os.kill(os.getpid(), signal.SIGKILL)
            yield batch

fc.compress(network(0.2), full_recipe(), Data(), epochs=3, checkpoint_dir=sys.argv[1], checkpoint_every=2,
            convert=False, eval_fn=lambda m: 0.0, progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_that_is_really_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", _SCRIPT, str(tmp_path)], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    result = _run(tmp_path, eval_fn=lambda model: 0.0, checkpoint_every=2)
    assert same_state(result.trained, _run(None, eval_fn=lambda model: 0.0).trained)
