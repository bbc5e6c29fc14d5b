"""Training the rows of a table one after the other, each resumable: what the image table and the text table share."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

import fastcompress as fc
from fastcompress.recipes import CompressionResult, Pruning, Stage

__all__ = ["Laboratory", "TableRow", "finished_epochs", "folder_name", "pruned_only", "train_missing"]


class TableRow(Protocol):
    """One line of a table."""

    @property
    def name(self) -> str:
        """What it is called there."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """It is trained once with each."""

    @property
    def epochs(self) -> int:
        """Passes over the training data."""

    @property
    def untrained(self) -> bool:
        """Whether it is pruned and judged without training."""


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
