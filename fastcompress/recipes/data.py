"""The training data of a run: batches, how many, and the loss on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from fastcompress.distillation import logits_of

from .seeding import start_epoch

__all__ = ["LossFn", "TrainData", "cross_entropy"]

#: ``loss_fn(output, batch)`` gives the scalar to train on.
LossFn = Callable[[Any, Any], Tensor]


def cross_entropy(output: Any, batch: Any) -> Tensor:
    """The default loss: cross-entropy on batches ``(x, y)``, or a Hugging Face output's own loss.

    Raises:
        TypeError: a batch that is no pair, and no loss in the output.
    """
    if isinstance(batch, Mapping):
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, Tensor):
            return loss
        raise TypeError(
            "compress: the batch is a mapping and the model's output has no loss; put labels into the batch, or pass "
            "loss_fn=lambda output, batch: …"
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            f"compress: without loss_fn a batch is a pair (x, y), got {type(batch).__name__}; pass "
            "loss_fn=lambda output, batch: …"
        )
    return torch.nn.functional.cross_entropy(logits_of(output).float(), batch[1])


class TrainData:
    """Batches, epoch by epoch.

    Args:
        data: an iterable of batches that can be iterated once an epoch (a DataLoader, a list), or ``data(epoch)`` that
            returns one.
        steps_per_epoch: None: the length of ``data``.
        seed: of the order.

    Raises:
        TypeError, ValueError: no iterable, an iterator that is used up after one epoch, no length, no batches.
    """

    def __init__(self, data: Any, steps_per_epoch: int | None, seed: int) -> None:
        self._by_epoch = callable(data) and not isinstance(data, Iterable)
        if isinstance(data, Iterator):
            raise TypeError(
                "compress: train_data is an iterator, which one epoch uses up; pass a DataLoader, a list, or a "
                "function epoch → batches"
            )
        if not self._by_epoch and (not isinstance(data, Iterable) or isinstance(data, (Tensor, str, Mapping))):
            raise TypeError(
                f"compress: train_data must be an iterable of batches or a function epoch → batches, got "
                f"{type(data).__name__}"
            )
        self._data, self._seed = data, seed
        if steps_per_epoch is None:
            sized = self._of(0)
            if not isinstance(sized, Sized):
                raise TypeError("compress: train_data has no length; pass steps_per_epoch")
            steps_per_epoch = len(sized)
            if steps_per_epoch == 0:
                raise ValueError("compress: train_data is empty; it has no batch to train on")
        if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
            raise ValueError(
                f"compress: steps_per_epoch must be a positive number of batches, got {steps_per_epoch!r:.80}"
            )
        self.steps_per_epoch = steps_per_epoch

    def _of(self, epoch: int) -> Any:
        return self._data(epoch) if self._by_epoch else self._data

    def first_batch(self) -> Any:
        """The first batch of the first epoch."""
        for batch in self.epoch(0):
            return batch
        raise ValueError("compress: train_data is empty; it gave no batch")

    def epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, in an order that depends on the seed and the epoch."""
        loader = self._of(epoch)
        start_epoch(self._seed, epoch, loader)
        return iter(loader)
