"""A small network in Hugging Face's Trainer, for the tests of its callback; import after ``importorskip``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import fastcompress as fc
from fastcompress.integrations.transformers import CompressionCallback
from tests.recipes.small import network, samples

__all__ = ["EPOCHS", "STEPS", "Classifier", "batches", "dataset", "make_trainer", "projecting", "train"]

EPOCHS, STEPS, RATE, DECAY = 3, 6, 0.02, 0.1


class Classifier(nn.Module):
    """Returns a dict with ``loss`` and ``logits``."""

    def __init__(self, net: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = network(dropout) if net is None else net

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def dataset() -> list[dict[str, Any]]:
    """Return what Trainer collates."""
    return [{"x": image, "labels": label} for image, label in samples()]


def batches(size: int = 16) -> list[dict[str, Tensor]]:
    """Return the batches that Trainer makes of `dataset`, in order."""
    images, labels = samples().tensors
    return [{"x": x, "labels": y} for x, y in zip(images.split(size), labels.split(size), strict=True)]


def make_trainer(model: nn.Module | None, folder: Path, *callbacks: Any, **options: Any) -> Any:
    """Return a Trainer; ``options`` are of its arguments, and of itself where it has them."""
    own = {k: options.pop(k) for k in ("train_dataset", "eval_dataset", "optimizers", "model_init") if k in options}
    settings: dict[str, Any] = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 16,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "optim": "adamw_torch",
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        **options,
    }
    arguments = TrainingArguments(str(folder), **settings)
    return Trainer(model, arguments, callbacks=list(callbacks), **{"train_dataset": dataset(), **own})


def train(model: nn.Module, recipe: Any, folder: Path, *, resume: Any = None, **options: Any) -> CompressionCallback:
    """Train with a recipe and return the callback."""
    trainer = make_trainer(model, folder, **options)
    callback = CompressionCallback(recipe).attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return callback


def wider() -> Classifier:
    """Return a teacher whose features have another width, so that projections are trained."""
    torch.manual_seed(7)
    return Classifier(nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 4)))


def projecting() -> list[fc.recipes.Stage]:
    """Return a recipe that adds projections and learned scales to train."""
    losses = (fc.distillation.FeatureLoss("net.3", "net.0"), "logits")
    return [fc.recipes.Distillation(wider(), losses=losses, start=1), fc.recipes.QAT(method="lsq")]
