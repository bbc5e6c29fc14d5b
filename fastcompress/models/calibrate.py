"""Running a model on calibration data: the batch protocol, the model's state around it, and the progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["ForwardFn", "as_batches", "evaluating", "replayable", "run_batch", "run_batches", "track"]

#: ``forward_fn(model, batch)`` runs the model on one batch in place of the batch protocol.
ForwardFn = Callable[[nn.Module, Any], Any]

T = TypeVar("T")

#: A bar appears when something has taken this long.
_BAR_AFTER_SECONDS = 2.0


def run_batch(
    model: nn.Module,
    batch: Any,
    forward_fn: ForwardFn | None = None,
    *,
    function: str = "quantize",
    noun: str = "calibration batch",
) -> Any:
    """Run ``model`` on a batch: a tensor is ``model(x)``, a mapping ``model(**x)``, a tuple or list its first element.

    Args:
        function: the public function that messages speak for, here and below.
        noun: what messages call the batch.

    Raises:
        TypeError, ValueError: the batch is none of these, or empty.
    """
    if forward_fn is not None:
        return forward_fn(model, batch)
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise ValueError(f"{function}: a {noun} is an empty tuple or list; its first element is the input")
        return run_batch(model, batch[0], function=function, noun=noun)
    raise TypeError(
        f"{function}: a {noun} is a {type(batch).__name__}; allowed are a tensor (model(x)), a dict "
        "(model(**x)), and a tuple or list whose first element is one of these; pass forward_fn=lambda model, batch: … "
        "for anything else"
    )


def as_batches(data: Any, argument: str = "calibration_data", *, function: str = "quantize") -> Iterable[Any]:
    """``data`` as an iterable of batches; a single tensor or dict counts as one batch.

    Raises:
        TypeError: it cannot be iterated, or is a tuple of several tensors.
    """
    if isinstance(data, (Tensor, Mapping)):
        return (data,)
    if isinstance(data, tuple) and len(data) > 1 and all(isinstance(item, Tensor) for item in data):
        raise TypeError(
            f"{function}: {argument} is a tuple of {len(data)} tensors, which may mean one batch (input, label) or "
            f"{len(data)} batches; write [(x, y)] for one batch, [x, y] for several"
        )
    iterable = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    if not iterable or isinstance(data, (str, bytes)):
        raise TypeError(
            f"{function}: {argument} must be an iterable of batches (a DataLoader, a list of tensors), "
            f"got {type(data).__name__}"
        )
    return cast("Iterable[Any]", data)


def replayable(batches: Iterable[Any]) -> Iterable[Any]:
    """The same batches, but iterable more than once: an iterator, which is used up by one pass, becomes a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode and no gradients recorded; every module's training flag is put back afterwards."""
    modules = list(model.modules())
    flags = [module.training for module in modules]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def run_batches(
    model: nn.Module,
    batches: Iterable[Any],
    forward_fn: ForwardFn | None = None,
    *,
    around: Callable[[], Any] | None = None,
    description: str = "calibrating",
    progress: bool | None = None,
    first: list[Any] | None = None,
    function: str = "quantize",
) -> int:
    """Run ``model`` on every batch and return their number.

    ``around()`` makes a context for each run; the first batch is put into the empty list ``first``.

    Raises:
        ValueError: there are no batches. Whatever the model raises is passed on with the batch's number as a note.
    """
    count = 0
    for batch in track(batches, description, progress):
        if first is not None and not first:
            first.append(batch)
        _check_not_empty(batch, count, function)
        try:
            if around is None:
                run_batch(model, batch, forward_fn, function=function)
            else:
                with around():
                    run_batch(model, batch, forward_fn, function=function)
        except Exception as error:
            error.add_note(f"raised while {description}, on batch {count}")
            raise
        count += 1
    if count == 0:
        raise ValueError(
            f"{function}: calibration_data yielded no batches; give at least one (a used-up iterator is empty)"
        )
    return count


def _check_not_empty(batch: Any, number: int, function: str) -> None:
    value = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(value, Tensor) and value.numel() == 0:
        raise ValueError(
            f"{function}: calibration batch {number} is empty (shape {list(value.shape)}); leave such batches out"
        )


def track(items: Iterable[T], description: str, enabled: bool | None = None) -> Iterator[T]:
    """Iterate over ``items``; when it takes long and stderr is a terminal, show a progress bar (if rich is installed).

    Args:
        enabled: None decides by stderr; True or False force it.
    """
    if enabled is None:
        enabled = sys.stderr.isatty()
    total = len(items) if isinstance(items, Sized) else None
    start = time.monotonic()
    bar: Any = None
    try:
        for done, item in enumerate(items):
            if enabled and bar is None and time.monotonic() - start > _BAR_AFTER_SECONDS:
                bar = _start_bar(description, total, done)
                enabled = bar is not None
            yield item
            if bar is not None:
                bar.advance(bar.task_ids[0])
    finally:
        if bar is not None:
            bar.stop()


def _start_bar(description: str, total: int | None, done: int) -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    bar = Progress(console=Console(stderr=True), transient=True)
    bar.add_task(description, total=total, completed=done)
    bar.start()
    return bar
