"""What `compress` gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fastcompress.record import CompressionRecord, record_of

from .history import History

__all__ = ["CompressionResult", "GivenUp"]


@dataclass(frozen=True)
class GivenUp:
    """One thing that `max_drop` cost.

    Attributes:
        layer: its name.
        what: ``"int8"``, ``"int4"`` or ``"sparsity"``.
        before, after: what the layer was to have, and has now, in words.
        score: of the whole model after this.
    """

    layer: str
    what: str
    before: str
    after: str
    score: float


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """A compressed model and how it came about.

    Attributes:
        model: the finished model, in eval mode.
        trained: the model as training left it, with its masks and fake quantization: it can be trained on.
        dense: the model before, in eval mode.
        history: epoch by epoch.
        dense_score, score: what ``eval_fn`` gave for ``dense`` and ``model``; None without one.
        example_inputs: one batch.
        recipe: the stages and settings, as JSON.
        given_up: what was relaxed to stay within ``max_drop``.
    """

    model: nn.Module
    trained: nn.Module
    dense: nn.Module
    history: History
    dense_score: float | None
    score: float | None
    example_inputs: Any
    recipe: Mapping[str, Any]
    given_up: tuple[GivenUp, ...] = field(default=())

    @property
    def drop(self) -> float | None:
        """How much of the score was lost; negative for a gain."""
        if self.dense_score is None or self.score is None:
            return None
        return self.dense_score - self.score

    @property
    def record(self) -> CompressionRecord | None:
        """What became of each layer, see `fastcompress.explain`."""
        return record_of(self.model)

    def report(self, path: str | Path | None = None, **options: Any) -> Any:
        """Measure the dense model, every stage and the result, and write a page.

        Args:
            path: ``.html`` (one page that needs nothing else), ``.md`` or ``.png``; None writes nothing.
            options: see `fastcompress.report.compression_report`.

        Returns:
            The `fastcompress.report.CompressionReport`.
        """
        from fastcompress.report import compression_report  # it measures, which the training loop need not import

        report = compression_report(self, **options)
        if path is not None:
            report.save(path)
        return report
