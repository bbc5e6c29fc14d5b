"""Training the rows of a table one after the other, each resumable: what the image table and the text table share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

import fastcompress as fc
from fastcompress.recipes import CompressionResult, Pruning, Stage

__all__ = ["Laboratory", "TableRow", "finished_epochs", "folder_name", "pruned_only", "row_named", "train_missing"]


@dataclass(frozen=True)
class TableRow(ABC):
    """One line of a table.

    Attributes:
        name: what it is called there.
        seeds: one training for each.
        stages: makes the stages from the dense network; None trains without any, with the same settings.
        student: a network of half the width, from nothing, in place of the dense one.
        untrained: prune and judge, without an epoch of training.
    """

    name: str
    seeds: tuple[int, ...] = (0,)
    stages: Callable[[Any], list[Stage]] | None = None
    student: bool = False
    untrained: bool = False

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Passes over the training data."""


Row = TypeVar("Row", bound=TableRow)


def row_named(rows: Iterable[Row], name: str) -> Row:
    """The row of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    known = {row.name: row for row in rows}
    if name not in known:
        raise ValueError(f"row_named: {name!r:.80} is no row; there are {', '.join(map(repr, known))}")
    return known[name]


R = TypeVar("R", bound=TableRow, contravariant=True)


class Laboratory(Protocol[R]):
    """What trains rows."""

    def run(self, row: R, seed: int, progress: bool | None = None) -> CompressionResult:
        """Train a row, or go on with it; what is finished already returns at once."""

    def trained(self, row: R, seed: int) -> nn.Module:
        """The network of a row with its masks and fake quantization."""

    def is_done(self, row: R, seed: int) -> bool:
        """Whether a row's training is over."""


def folder_name(row: str, seed: int) -> str:
    """The name of the folder of a row's checkpoints, and of its finished network."""
    return "".join(letter if letter.isalnum() else "-" for letter in row) + f"-{seed}"


def finished_epochs(folder: Path) -> int:
    """How many epochs the checkpoints in a folder have behind them."""
    path = folder / "last.pt"
    return len(torch.load(path, map_location="cpu", weights_only=True)["history"]) if path.exists() else 0


def pruned_only(dense: nn.Module, stages: Sequence[Stage]) -> nn.Module:
    """A row without training: the dense network pruned as the first stage says."""
    stage = stages[0]
    assert isinstance(stage, Pruning)
    return fc.prune(dense, stage.sparsity, stage.pattern, scope=stage.scope, ignore=stage.ignore)


def train_missing(
    lab: Laboratory[Any], rows: Sequence[TableRow], seeds: Collection[int] | None, known: Collection[tuple[str, int]]
) -> None:
    """Train what is neither in the table nor trained: first seeds first.

    Args:
        lab: what trains.
        rows: these only.
        seeds: these only; None: each row's.
        known: names and seeds that are in the table.
    """
    for seed in sorted({seed for row in rows for seed in row.seeds}):
        for row in rows:
            wanted = seed in row.seeds and (seeds is None or seed in seeds) and (row.name, seed) not in known
            if wanted and not lab.is_done(row, seed):
                start = time.perf_counter()
                result = lab.run(row, seed)
                last = result.history.rows[-1]
                print(
                    f"{row.name}, seed {seed}: validation {last.score:.2f}%, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
