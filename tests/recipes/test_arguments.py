"""What is wrong with the arguments of `compress` is said before anything is trained, by the argument's name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.errors import TrainingDiverged
from fastcompress.recipes import QAT, Distillation, Pruning

from .small import loader, network, same_state

RECIPE = [Pruning(0.5, "4x4", end=1)]


def _compress(recipe: Any = RECIPE, **options: Any) -> fc.recipes.CompressionResult:
    model, data = options.pop("model", None) or network(), options.pop("data", None) or loader()
    return fc.compress(model, recipe, data, **{"progress": False, "epochs": 2, "convert": False, **options})


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"autocast": "bf16"}, ValueError, "autocast must be torch.bfloat16"),
    ({"clip_norm": "1"}, ValueError, "clip_norm must be a finite number"),
    ({"clip_norm": -1.0}, ValueError, r"clip_norm must be above zero, got -1\.0"),
    ({"clip_norm": float("nan")}, ValueError, "clip_norm must be"),
    ({"seed": "x"}, TypeError, "seed must be an int"),
    ({"seed": True}, TypeError, "seed must be an int"),
    ({"loss_fn": 3}, TypeError, "loss_fn must be a function, got 3"),
    ({"eval_fn": 3}, TypeError, "eval_fn must be a function, got 3"),
    ({"loss_fn": lambda output, batch: output}, TypeError, r"one element, got a tensor \[16, 4\]; take the mean"),
    ({"loss_fn": lambda output, batch: 1.0}, TypeError, "loss_fn must return a tensor with one element, got float"),
    ({"loss_fn": lambda output, batch: output.detach().mean()}, ValueError, "the loss has no gradient"),
    ({"eval_fn": lambda model: float("nan")}, ValueError, "eval_fn returned NaN"),
    ({"eval_fn": lambda model: None}, TypeError, "eval_fn must return a number, higher is better, got NoneType"),
    ({"eval_fn": lambda model: True}, TypeError, "eval_fn must return a number, higher is better, got bool"),
    ({"learning_rate": lambda progress: float("nan")}, ValueError, "learning_rate must give a factor"),
    ({"learning_rate": lambda progress: -1.0}, ValueError, "learning_rate must give a factor"),
    ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be a positive number"),
    ({"recipe": [QAT(start=1.95)]}, ValueError, "QAT from epoch 1.95 to 2 has no optimizer step, as an epoch has 6"),
    ({"recipe": [Distillation("dense", start=1, end=1)]}, ValueError, "Distillation from epoch 1 to 1 has no"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kind, match=f"compress: .*{message}"):
        _compress(model=model, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not hasattr(model[3], "parametrizations")


def test_a_file_is_no_checkpoint_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="checkpoint_dir must be a directory"):
        _compress(checkpoint_dir=file)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        _compress(model=network().requires_grad_(False))


@pytest.mark.parametrize("score", [np.float32(0.5), np.int64(3), torch.tensor(0.5), torch.tensor([0.5]), 1])
def test_scores_may_be_any_number(score: Any) -> None:
    assert _compress(eval_fn=lambda model: score).score == float(score)


def test_random_numbers_of_the_caller() -> None:
    """Not even data that draws numbers while it is made, or a factory that does, moves the caller's."""
    batches, model = list(loader()), network()

    def data(epoch: int) -> Any:
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        random.random()
        return batches

    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        torch.rand(1)
        return torch.optim.SGD(parameters, lr=0.1)

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]  # noqa: NPY002
    _compress(model=model, data=data, optimizer=factory)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert before[2] == random.getstate()


def test_unconverted_results_are_in_eval_mode() -> None:
    assert not any(module.training for module in _compress(convert=False).model.modules())
    assert not fc.distill(network(), network(), loader(), epochs=1, progress=False).model.training


class _NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("nan")


def test_a_nan_gradient_under_a_finite_loss_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    calls = iter(range(100))

    def loss(output: Any, batch: Any) -> Tensor:
        value = nn.functional.cross_entropy(output, batch[1])
        spoiled: Tensor = _NaNBackward.apply(value) if next(calls) == 3 else value
        return spoiled

    with pytest.raises(TrainingDiverged, match=r"the gradient's norm is nan at step 4 \(epoch 1; task"):
        _compress(loss_fn=loss, checkpoint_dir=tmp_path, checkpoint_every=1)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 3
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_weights_that_an_update_made_infinite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    rates = iter([1.0, 1.0, 3e38, 1.0])

    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    def steep(output: Any, batch: Any) -> Tensor:
        return 100.0 * nn.functional.cross_entropy(output, batch[1])

    with pytest.raises(TrainingDiverged, match="weights are NaN or infinite after step 3; the last good checkpoint is"):
        _compress(
            [],
            loss_fn=steep,
            optimizer=factory,
            learning_rate=lambda p: next(rates),
            checkpoint_dir=tmp_path,
            checkpoint_every=1,
        )
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_the_same_call_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (_compress(model=network(0.2), seed=seed).trained for seed in (4, 4, 5))
    assert same_state(first, again)
    assert not same_state(first, other)
