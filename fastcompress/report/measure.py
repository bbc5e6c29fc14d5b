"""Timing that survives a noisy machine: medians of many short samples, competitors interleaved."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["compare", "median_seconds", "rotate"]

#: A sample shorter than this would time the clock.
_MIN_SAMPLE_S = 50e-6
#: A run of calls that shows a kernel with its operands in the caches.
_ROW_SAMPLE_S = 500e-6


def _timed(fn: Callable[[], Any], calls: int) -> float:
    """Seconds per call over ``calls`` calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) / calls


def _calls_per_sample(fn: Callable[[], Any], sample_s: float) -> int:
    """Warm ``fn`` up and find how many calls one sample needs."""
    fn()
    return max(1, math.ceil(sample_s / max(_timed(fn, 1), 1e-9)))


def median_seconds(
    fn: Callable[[], Any], min_time_s: float = 0.05, *, min_samples: int = 5, max_samples: int = 1000
) -> float:
    """Median seconds of one call of ``fn``.

    Samples are taken until ``min_time_s`` seconds are spent and ``min_samples`` are there, but never more than
    ``max_samples``. Calls that take microseconds are timed in groups. The first calls are not counted.

    Example:
        >>> median_seconds(lambda: None, min_time_s=0.001) < 1e-3
        True
    """
    return compare({"": fn}, min_time_s, min_samples=min_samples, max_samples=max_samples)[""]


def compare(
    fns: Mapping[str, Callable[[], Any]],
    min_time_s: float = 0.05,
    *,
    min_samples: int = 5,
    max_samples: int = 1000,
    in_a_row: bool = False,
) -> dict[str, float]:
    """Median seconds per call of each function, samples taken in turns so that a slow phase of the machine hits all.

    Each round times every function once and starts with another one than the round before. ``min_time_s`` (seconds)
    is per function; the rounds end when all of them have had it and ``min_samples``, or after ``max_samples``.

    A call usually finds its operands where the other functions have left them, often in memory. ``in_a_row`` shows a
    function by itself: each sample is half a millisecond of calls, behind one that is not counted.

    Returns:
        name → seconds, in the order given.

    Raises:
        ValueError: a limit is not positive.

    Example:
        >>> list(compare({"a": lambda: 1, "b": lambda: 2}, min_time_s=0.001))
        ['a', 'b']
    """
    if not min_time_s > 0 or not 1 <= min_samples <= max_samples:
        raise ValueError(
            f"compare: min_time_s must be positive and 1 <= min_samples <= max_samples, got {min_time_s}, "
            f"{min_samples} and {max_samples}"
        )
    names = list(fns)
    sample_s = _ROW_SAMPLE_S if in_a_row else _MIN_SAMPLE_S
    calls = {name: _calls_per_sample(fns[name], sample_s) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for turn in range(max_samples):
        if turn >= min_samples and all(seconds >= min_time_s for seconds in spent.values()):
            break
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            if in_a_row:
                fns[name]()
            seconds = _timed(fns[name], calls[name])
            samples[name].append(seconds)
            spent[name] += seconds * calls[name]
    return {name: statistics.median(samples[name]) for name in names}


def rotate(operand: Tensor, total_bytes: int = 512 * 1024**2) -> Iterator[Tensor]:
    """Endless copies of ``operand``, together larger than the caches, so that each call reads it from memory.

    Args:
        operand: the tensor to copy (bandwidth-bound work: the weights).
        total_bytes: what all copies together take at least, in bytes; should be several times the last-level cache.

    Example:
        >>> weights = rotate(torch.zeros(4), total_bytes=64)
        >>> len({next(weights).data_ptr() for _ in range(100)})
        4
    """
    copies = max(2, math.ceil(total_bytes / max(1, operand.numel() * operand.element_size())))
    return itertools.cycle([torch.clone(operand) for _ in range(copies)])
