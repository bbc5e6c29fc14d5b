"""What happened in a run, epoch by epoch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EpochRow", "History"]


@dataclass(frozen=True)
class EpochRow:
    """One epoch.

    Attributes:
        epoch: counted from 1.
        step: optimizer steps done at its end.
        losses: part → mean over the epoch; ``"total"`` is what was trained on.
        sparsity: masked fraction of the pruned layers' weights; None without pruning.
        score: what ``eval_fn`` gave; None without one.
        learning_rate: of the first parameter group, at the end.
        seconds: that the epoch took.
    """

    epoch: int
    step: int
    losses: dict[str, float]
    sparsity: float | None
    score: float | None
    learning_rate: float
    seconds: float


@dataclass
class History:
    """The rows of all epochs so far."""

    rows: list[EpochRow] = field(default_factory=list)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain dicts."""
        return [dataclasses.asdict(row) for row in self.rows]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> History:
        """What `to_json` wrote."""
        return cls([EpochRow(**row) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)
