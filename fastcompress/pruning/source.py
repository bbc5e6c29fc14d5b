"""Where a criterion's knowledge comes from: calibration data, how the model runs on it, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcompress.models.calibrate import ForwardFn, as_batches, replayable

from .criteria import NEEDS_DATA

__all__ = ["LossFn", "Source", "make_source"]

#: ``loss_fn(output, batch)`` → a scalar tensor with a gradient.
LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Source:
    """Where a criterion's knowledge comes from.

    Attributes:
        batches: calibration batches that can be iterated more than once, or None.
        forward_fn: runs the model on a batch in place of the batch protocol.
        loss_fn: the loss of Taylor scores; None is the sum of squares of the model's first output tensor.
        seed: of random scores.
        progress: show progress bars; None decides by stderr.
        function: the public function that messages speak for.
    """

    batches: Iterable[Any] | None = None
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    seed: int = 0
    progress: bool | None = None
    function: str = "prune"


def make_source(
    function: str,
    criterion: str,
    calibration_data: Any,
    forward_fn: ForwardFn | None,
    loss_fn: LossFn | None,
    seed: int,
    progress: bool | None,
) -> Source:
    """The checked `Source` of a criterion, for the public function called ``function``.

    Raises:
        TypeError, ValueError: data that is missing or no iterable, or functions that cannot be called.
    """
    for name, value, call in (
        ("forward_fn", forward_fn, "forward_fn(model, batch)"),
        ("loss_fn", loss_fn, "loss_fn(output, batch)"),
    ):
        if value is not None and not callable(value):
            raise TypeError(f"{function}: {name} must be callable as {call}, got {value!r:.80}")
    if calibration_data is None:
        if criterion in NEEDS_DATA:
            raise ValueError(
                f"{function}: criterion {criterion!r} needs calibration_data: an iterable of batches, some hundred "
                "real samples in all; criterion 'magnitude' needs none"
            )
        return Source(None, forward_fn, loss_fn, seed, progress, function)
    batches = as_batches(calibration_data, function=function)
    return Source(replayable(batches), forward_fn, loss_fn, seed, progress, function)
