"""What a compression report holds: plain numbers and words, ready for JSON, and what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group

from fastcompress.report import render

__all__ = ["FINISHED", "FROZEN", "CompressionReport", "ReportLayer", "StageRow"]

#: Names of the last stages: the finished model, and the same as one program.
FINISHED, FROZEN = "compressed", "compressed, frozen"


@dataclass(frozen=True)
class StageRow:
    """One model, in the fastest way it runs.

    Attributes:
        name: ``"dense, fp32 eager"``, …, ``"pruned, dense kernels"``, …, ``"compressed"``.
        dense: whether it is a form of the model before compression.
        size_bytes: parameters and buffers.
        score: what ``eval_fn`` gave; None where it was not asked. Forms of the dense model but fp32 have none.
        seconds: batch → median seconds of one call; None where it did not run.
        note: the error when it did not run, or what to know.
    """

    name: str
    dense: bool
    size_bytes: int
    score: float | None
    seconds: Mapping[int, float | None]
    note: str = ""


@dataclass(frozen=True)
class ReportLayer:
    """One layer of the finished model; times in seconds of one call, as they were measured when it was converted."""

    name: str
    kind: str
    shape: str
    sparsity: float | None
    precision: str
    kernel: str
    dense_seconds: float | None
    seconds: float | None
    speedup: float | None
    share: float | None
    reason: str


@dataclass(frozen=True)
class CompressionReport:
    """What became of a model, in numbers; prints as tables, `save` writes a page.

    Attributes:
        title: of the page.
        dense_score, score: before and after; None without ``eval_fn``.
        batches: the measured batch sizes.
        stages: forms of the dense model first, then those between, then the finished model and, where it can be frozen
            (`fastcompress.freeze`), the same as one program.
        layers: of the finished model.
        history: epoch by epoch, as `fastcompress.recipes.EpochRow`.
        recipe: stages and settings.
        given_up: what `max_drop` cost.
        environment: CPU, threads, versions, commit.
    """

    title: str
    dense_score: float | None
    score: float | None
    batches: tuple[int, ...]
    stages: tuple[StageRow, ...]
    layers: tuple[ReportLayer, ...]
    history: tuple[Mapping[str, Any], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    given_up: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drop(self) -> float | None:
        """How much of the score was lost; negative for a gain."""
        return None if self.dense_score is None or self.score is None else self.dense_score - self.score

    @property
    def compressed(self) -> StageRow:
        """The finished model."""
        return next((row for row in self.stages if row.name == FINISHED), self.stages[-1])

    @property
    def size_ratio(self) -> float:
        """Bytes of the dense model as given over bytes of the finished one."""
        return self.stages[0].size_bytes / max(1, self.compressed.size_bytes)

    def strongest_dense(self, batch: int) -> StageRow | None:
        """The fastest form of the dense model at this batch size."""
        ran = [row for row in self.stages if row.dense and row.seconds[batch] is not None]
        return min(ran, key=lambda row: row.seconds[batch] or 0.0, default=None)

    def speedup(self, batch: int, row: StageRow | None = None) -> float | None:
        """Of ``row`` (the finished model) over the strongest dense form; below 1 it is slower."""
        best, seconds = self.strongest_dense(batch), (row or self.compressed).seconds[batch]
        base = None if best is None else best.seconds[batch]
        return None if base is None or not seconds else base / seconds

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        best = {batch: self.strongest_dense(batch) for batch in self.batches}
        stages = [dataclasses.asdict(row) | {"seconds": _keys(row.seconds)} for row in self.stages]
        return {
            "title": self.title,
            "accuracy": {"dense": self.dense_score, "compressed": self.score, "drop": self.drop},
            "size_bytes": {"dense": self.stages[0].size_bytes, "compressed": self.compressed.size_bytes},
            "size_ratio": self.size_ratio,
            "batches": list(self.batches),
            "strongest_dense": _keys({batch: row and row.name for batch, row in best.items()}),
            "speedup": _keys({batch: self.speedup(batch) for batch in self.batches}),
            "stages": stages,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "history": [dict(row) for row in self.history],
            "recipe": dict(self.recipe),
            "given_up": [dict(row) for row in self.given_up],
            "environment": dict(self.environment),
        }

    def save(self, path: str | Path) -> None:
        """Write the report; the suffix says how.

        Args:
            path: ``.html``: one page that needs nothing else. ``.md``: its tables. ``.png``: its plots, with the extra
                ``report``. ``.json``: `to_dict`.

        Raises:
            ValueError: another suffix. ImportError: a ``.png`` without matplotlib; the message names the extra.
        """
        from fastcompress.report.compression.files import save

        save(self, Path(path))

    def __rich__(self) -> Group:
        from fastcompress.report.compression.tables import layers_table, stages_table, summary_table

        tables = (summary_table(self), stages_table(self), layers_table(self))
        return Group(*(render.table(t.title, t.columns, t.rows, t.note) for t in tables if t.rows))

    def __str__(self) -> str:
        return render.text(self)


def _keys(values: Mapping[int, Any]) -> dict[str, Any]:
    """With keys as JSON has them."""
    return {str(key): value for key, value in values.items()}
