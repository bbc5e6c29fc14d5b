"""Sparsity schedules: pure functions from the step of training to the pruned fraction."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

__all__ = [
    "SCHEDULES",
    "constant_sparsity",
    "cubic_sparsity",
    "iterative_sparsity",
    "linear_sparsity",
    "round_steps",
]


def constant_sparsity(step: int, final: float, *, start: int = 0, initial: float = 0.0) -> float:
    """``initial`` before ``start``, ``final`` from there on; the schedules ``"constant"`` and ``"one-shot"``.

    Args:
        step: optimizer steps done.
        final, initial: pruned fractions, in [0, 1).
        start: the first step with ``final``.

    Example:
        >>> [constant_sparsity(step, 0.5, start=2) for step in range(4)]
        [0.0, 0.0, 0.5, 0.5]
    """
    return final if step >= start else initial


def linear_sparsity(step: int, final: float, *, start: int, end: int, initial: float = 0.0) -> float:
    """From ``initial`` at ``start`` to ``final`` at ``end`` in a straight line, constant outside.

    With ``start == end`` the sparsity is ``final`` from there on.

    Args:
        step: optimizer steps done.
        final, initial: pruned fractions, in [0, 1).
        start, end: steps, ``start <= end``.

    Example:
        >>> [linear_sparsity(step, 0.8, start=0, end=4) for step in (0, 1, 2, 5)]
        [0.0, 0.2, 0.4, 0.8]
    """
    # In this form both ends are exact.
    done = _progress(step, start, end)
    return final * done + initial * (1.0 - done)


def cubic_sparsity(step: int, final: float, *, start: int, end: int, initial: float = 0.0) -> float:
    """``final + (initial - final) (1 - t)^3`` with ``t`` from 0 at ``start`` to 1 at ``end``: fast first, then slow.

    With ``start == end`` the sparsity is ``final`` from there on.

    Args:
        step: optimizer steps done.
        final, initial: pruned fractions, in [0, 1).
        start, end: steps, ``start <= end``.

    Example:
        >>> [cubic_sparsity(step, 0.8, start=0, end=4) for step in (0, 2, 4)]
        [0.0, 0.7, 0.8]

    Source: Zhu & Gupta, "To prune, or not to prune" (arXiv 1710.01878), equation 1.
    """
    left = (1.0 - _progress(step, start, end)) ** 3
    return final * (1.0 - left) + initial * left


def iterative_sparsity(step: int, final: float, *, start: int, end: int, rounds: int, initial: float = 0.0) -> float:
    """Rounds that each prune the same fraction of what is left; after ``k`` of ``n`` rounds, density d0 (d1/d0)^(k/n).

    Args:
        step: optimizer steps done.
        final, initial: pruned fractions, in [0, 1).
        start, end: steps of the first and the last round, ``start <= end``.
        rounds: at least 1; see `round_steps` for when they are.

    Example:
        >>> [iterative_sparsity(step, 0.75, start=10, end=20, rounds=2) for step in (9, 10, 19, 20)]
        [0.0, 0.5, 0.5, 0.75]

    Source: Frankle & Carbin, "The Lottery Ticket Hypothesis" (arXiv 1803.03635), section 1: p^(1/n) of the weights in
    each round.
    """
    done = sum(boundary <= step for boundary in round_steps(start, end, rounds))
    if done == rounds:
        return final
    share = done / rounds
    return 1.0 - (1.0 - initial) ** (1.0 - share) * (1.0 - final) ** share


def round_steps(start: int, end: int, rounds: int) -> tuple[int, ...]:
    """The steps at which iterative pruning prunes: ``rounds`` of them, evenly from ``start`` to ``end``.

    A single round is at ``start``.

    Example:
        >>> round_steps(10, 40, 4)
        (10, 20, 30, 40)
    """
    if rounds == 1:
        return (start,)
    return tuple(start + (end - start) * k // (rounds - 1) for k in range(rounds))


def _progress(step: int, start: int, end: int) -> float:
    """0 before ``start``, 1 from ``end`` on."""
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)


def _switched(step: int, final: float, *, start: int, end: int, rounds: int, initial: float) -> float:
    return constant_sparsity(step, final, start=start, initial=initial)


def _linear(step: int, final: float, *, start: int, end: int, rounds: int, initial: float) -> float:
    return linear_sparsity(step, final, start=start, end=end, initial=initial)


def _cubic(step: int, final: float, *, start: int, end: int, rounds: int, initial: float) -> float:
    return cubic_sparsity(step, final, start=start, end=end, initial=initial)


#: Name → ``function(step, final, start=, end=, rounds=, initial=)``.
SCHEDULES: MappingProxyType[str, Callable[..., float]] = MappingProxyType(
    {
        "constant": _switched,
        "linear": _linear,
        "cubic": _cubic,
        "one-shot": _switched,
        "iterative": iterative_sparsity,
    }
)
