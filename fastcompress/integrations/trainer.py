"""What the callback for Hugging Face's Trainer asks of it, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastcompress.errors import TrainingDiverged
from fastcompress.recipes import Distillation, Stage

__all__ = ["check_finite", "check_trainer", "gradient_norm", "length_of", "loss_divisor", "replaced"]


def check_trainer(trainer: Any, stages: Sequence[Stage]) -> None:
    """Raise where a recipe cannot follow this Trainer.

    Raises:
        ValueError: see above.
    """
    args = trainer.args
    distils = any(isinstance(stage, Distillation) for stage in stages)
    refused = {
        f"nn.DataParallel over {args.n_gpu} GPUs replicates the model in every step, and masks would be lost; let "
        "CUDA_VISIBLE_DEVICES name one": args.n_gpu > 1,
        "several processes are not supported; use one, or fastcompress.compress under torchrun": args.world_size > 1,
        "DeepSpeed, FSDP and models spread over devices are not supported; train on one device": (
            trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.is_model_parallel
        ),
        "model_init makes another model when train begins; give Trainer model=": trainer.model_init is not None,
        "auto_find_batch_size changes the steps of an epoch; set per_device_train_batch_size": (
            args.auto_find_batch_size
        ),
        "load_best_model_at_end would bring back weights from before the recipe was through; set it to False and "
        "choose among the checkpoints yourself": args.load_best_model_at_end,
        "torch_compile hides the outputs that a teacher's are compared with; set it to False": (
            args.torch_compile and distils
        ),
    }
    for reason, applies in refused.items():
        if applies:
            raise ValueError(f"CompressionCallback: {reason}")


def length_of(trainer: Any, loader: Any) -> tuple[int, int]:
    """Optimizer steps of an epoch, and of the run.

    Raises:
        ValueError: nobody knows.
    """
    args = trainer.args
    try:
        batches = len(loader)
    except TypeError:
        raise ValueError(
            "CompressionCallback: the training data has no length, so that nobody knows how many steps an epoch has, "
            "and a recipe's times are in epochs; give the dataset a __len__"
        ) from None
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return steps, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)


def loss_divisor(trainer: Any, num_items_in_batch: Any) -> int:
    """By how much the loss of a batch is divided already, when ``compute_loss`` returns it, for accumulation.

    With ``num_items_in_batch`` a model divides by the items of all the batches of an optimizer step. Without it,
    Trainer divides by the number of batches, but only afterwards.
    """
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        with_items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = with_items or trainer.compute_loss_func is not None
    return int(trainer.current_gradient_accumulation_steps) if scaled else 1


@contextmanager
def replaced(owner: object, **functions: Callable[..., Any]) -> Iterator[None]:
    """Other methods for one object, inside the block."""
    before = {name: vars(owner)[name] for name in functions if name in vars(owner)}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name in functions:
            delattr(owner, name)
        for name, function in before.items():
            setattr(owner, name, function)


def check_finite(value: float, what: str, step: int, steps_per_epoch: int, parts: dict[str, Any]) -> None:
    """Raise where a step would destroy the weights.

    Raises:
        TrainingDiverged: see above.
    """
    if math.isfinite(value):
        return
    listed = "".join(f"; {name} {float(part):g}" for name, part in parts.items())
    raise TrainingDiverged(
        f"CompressionCallback: {what} is {value} at step {step + 1} (epoch {step // steps_per_epoch + 1}{listed}); the "
        "weights were not changed by this step. Use a smaller learning_rate, or max_grad_norm=1.0, and go on from "
        "Trainer's last checkpoint"
    )


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Of all gradients together."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
