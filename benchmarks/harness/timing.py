"""Timing by interleaved rounds (`fastcompress.report.measure.compare`), within a budget that every suite shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastcompress.report.measure import compare

__all__ = ["Budget", "Timing", "interleave"]


@dataclass(frozen=True)
class Budget:
    """How long to measure: seconds that each candidate gets at least, and bounds on the number of rounds."""

    seconds: float = 0.7
    min_rounds: int = 9
    max_rounds: int = 400


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate: the median over all rounds."""

    median: float

    @property
    def microseconds(self) -> float:
        """The median in µs."""
        return self.median * 1e6


def interleave(
    candidates: Mapping[str, Callable[[], object]], budget: Budget, *, in_a_row: bool = False
) -> dict[str, Timing]:
    """Time ``candidates`` (name → call without arguments) in turn and return the median of each.

    Layers and models are timed call by call, as they find the caches after others. Kernels by themselves, whose rows
    say what share of a ceiling they reach, are called ``in_a_row`` for half a millisecond in each turn, the first call
    not counted; so are the dense kernels they are compared with.

    interleave({"dense": lambda: dense(x), "int8": lambda: quantized(x)}, Budget())["int8"].median
    """
    for call in candidates.values():  # one more warm-up than compare's own: caches, allocator, thread pool
        call()
    medians = compare(
        candidates,
        budget.seconds,
        min_samples=budget.min_rounds,
        max_samples=budget.max_rounds,
        in_a_row=in_a_row,
    )
    return {name: Timing(seconds) for name, seconds in medians.items()}
