"""What the callback for Hugging Face's Trainer refuses, and how it says so."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from fastcompress.errors import TrainingDiverged
from fastcompress.recipes import QAT, Distillation, Pruning

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
pytest.importorskip("accelerate", reason="needs the extra transformers")
callbacks = pytest.importorskip("fastcompress.integrations.transformers")
runs = pytest.importorskip("tests.integrations.trainer_runs")

WRAPPED = {"train", "compute_loss", "get_decay_parameter_names"}


class Endless(IterableDataset[Any]):
    """Has no length."""

    def __iter__(self) -> Iterator[Any]:
        yield from runs.dataset()


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ([Pruning(0.5)], {"train_dataset": Endless(), "max_steps": 9}, "the training data has no length"),
    ([Pruning(0.5, "channel", end=1)], {}, "pattern 'channel' makes a smaller model"),
    ([QAT(start=7)], {}, "QAT: start=7 is after the end"),
    ([Pruning(0.5)], {"model_init": lambda: runs.Classifier()}, "model_init makes another model"),
    ([Pruning(0.5)], {"auto_find_batch_size": True}, "auto_find_batch_size changes the steps"),
    (
        [Pruning(0.5)],
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch", "eval_dataset": [1]},
        "load_best_model_at_end would bring back",
    ),
    ([Distillation("dense")], {"torch_compile": True}, "torch_compile hides the outputs"),
]


@pytest.mark.parametrize(("recipe", "options", "message"), REFUSED)
def test_refused(recipe: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = None if "model_init" in options else runs.Classifier()
    trainer = runs.make_trainer(model, tmp_path, **options)
    callback = callbacks.CompressionCallback(recipe).attach(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert callback.session is None
    assert not any("parametrizations" in name for name, _ in trainer.model.named_modules())


def test_several_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = runs.make_trainer(runs.Classifier(), tmp_path)
    callbacks.CompressionCallback([Pruning(0.5)]).attach(trainer)
    monkeypatch.setattr(trainer.args, "_n_gpu", 2)
    with pytest.raises(ValueError, match="DataParallel over 2 GPUs replicates the model"):
        trainer.train()
    monkeypatch.setattr(trainer.args, "_n_gpu", 1)
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(ValueError, match="several processes are not supported"):
        trainer.train()


def test_an_optimizer_without_the_learned_scales(tmp_path: Path) -> None:
    model = runs.Classifier()
    trainer = runs.make_trainer(model, tmp_path, optimizers=(torch.optim.SGD(model.parameters(), 0.1), None))
    callbacks.CompressionCallback([QAT(method="lsq")]).attach(trainer)
    with pytest.raises(ValueError, match="the optimizer leaves out what the recipe has added"):
        trainer.train()
    assert not WRAPPED & vars(trainer).keys()


def test_a_callback_goes_with_one_train(tmp_path: Path) -> None:
    callback = callbacks.CompressionCallback([Pruning(0.5, "4x4")])
    trainer = runs.make_trainer(runs.Classifier(), tmp_path, callback, num_train_epochs=1)
    with pytest.raises(RuntimeError, match=r"call callback\.attach\(trainer\) before trainer\.train"):
        trainer.train()
    with pytest.raises(RuntimeError, match=r"trainer\.train has not begun"):
        callback.finish()
    assert callback.attach(trainer) is callback
    assert sum(each is callback for each in trainer.callback_handler.callbacks) == 1
    other = runs.make_trainer(runs.Classifier(), tmp_path)
    with pytest.raises(RuntimeError, match="attached to another Trainer already"):
        callback.attach(other)
    with pytest.raises(RuntimeError, match="attached to this Trainer already"):
        callback.attach(trainer)
    with pytest.raises(RuntimeError, match="the Trainer has another CompressionCallback"):
        callbacks.CompressionCallback([Pruning(0.5)]).attach(trainer)
    trainer.train()
    with pytest.raises(RuntimeError, match="a callback goes with one train of one Trainer"):
        trainer.train()
    trainer.remove_callback(callback)
    trainer.train()
    assert trainer.state.global_step == runs.STEPS


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="a recipe consists of"):
        callbacks.CompressionCallback([3])
    with pytest.raises(TypeError, match="trainer must be a Trainer, got Linear"):
        callbacks.CompressionCallback([]).attach(nn.Linear(1, 1))


class Breaking(runs.Classifier):  # type: ignore[misc,name-defined]
    """Its loss, or the gradient of it, is NaN from the ninth step on."""

    def __init__(self, gradient: bool) -> None:
        super().__init__()
        self.gradient, self.calls = gradient, 0
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        output: dict[str, Tensor] = super().forward(x, labels)
        self.calls += self.training
        if self.calls == 9:
            self.kept = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
            bad = self.net[9].weight.sum() * 0.0
            output["loss"] = output["loss"] + (bad.square().sqrt() if self.gradient else math.nan * bad)
        return output


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (False, r"the loss is nan at step 9 \(epoch 2; task nan; logits .*\); the weights were not changed"),
        (True, r"the gradient's norm is nan at step 9 \(epoch 2\); the weights were not changed"),
    ],
)
def test_a_run_that_diverges(gradient: bool, message: str, tmp_path: Path) -> None:
    model = Breaking(gradient)
    trainer = runs.make_trainer(model, tmp_path)
    recipe = [Pruning(0.5, "4x4"), Distillation(runs.Classifier())]
    callbacks.CompressionCallback(recipe).attach(trainer)
    with pytest.raises(TrainingDiverged, match=message):
        trainer.train()
    assert model.kept
    assert all(torch.equal(parameter, model.kept[name]) for name, parameter in model.named_parameters())
    assert not WRAPPED & vars(trainer).keys()


class Aside(transformers.Trainer):  # type: ignore[misc,name-defined]
    """Does not call the model as a function."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model.forward(**inputs)["loss"]


def test_a_loss_without_the_models_output(tmp_path: Path) -> None:
    arguments = runs.make_trainer(runs.Classifier(), tmp_path).args
    trainer = Aside(runs.Classifier(), arguments, train_dataset=runs.dataset())
    callbacks.CompressionCallback([Distillation("dense")]).attach(trainer)
    with pytest.raises(RuntimeError, match="compute_loss did not call the model as a function"):
        trainer.train()


@pytest.mark.parametrize("missing", ["transformers", "accelerate.utils"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fastcompress.integrations.transformers"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'fastcompress\[transformers\]'"):
        importlib.import_module(name)
