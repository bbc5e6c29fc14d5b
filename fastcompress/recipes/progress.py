"""The progress bar of a run: loss, sparsity and score."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from .history import EpochRow
from .processes import is_first

__all__ = ["Progress"]


class Progress:
    """A bar for each epoch, and a line when it is over.

    Args:
        epochs: of the run.
        enabled: None: when stderr is a terminal. Only the first of several processes shows anything.
    """

    def __init__(self, epochs: int, enabled: bool | None) -> None:
        self._epochs = epochs
        self._enabled = (sys.stderr.isatty() if enabled is None else enabled) and is_first()
        self._score: float | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, console=Console(stderr=True), disable=not self._enabled, transient=True)
        self._task = self._bars.add_task("", total=None, text="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, epoch: int, steps: int, done: int) -> None:
        """Start the bar of an epoch, counted from 0."""
        description = f"epoch {epoch + 1}/{self._epochs}"
        self._bars.reset(self._task, total=steps, completed=max(0, done), description=description, text="")

    def advance(self, loss: float, sparsity: float | None) -> None:
        """One step."""
        if self._enabled:
            self._bars.update(self._task, advance=1, text=_text(loss, sparsity, self._score))

    def end(self, row: EpochRow) -> None:
        """Write an epoch's line."""
        self._score = row.score
        if self._enabled:
            text = _text(row.losses.get("total", float("nan")), row.sparsity, row.score)
            self._bars.console.print(f"epoch {row.epoch}/{self._epochs}  {text}  {row.seconds:.1f} s")


def _text(loss: float, sparsity: float | None, score: float | None) -> str:
    parts = [f"loss {loss:.4f}"]
    if sparsity is not None:
        parts.append(f"sparsity {sparsity:.1%}")
    if score is not None:
        parts.append(f"score {score:.4f}")
    return "  ".join(parts)
