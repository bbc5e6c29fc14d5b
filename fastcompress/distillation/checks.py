"""Checks of configuration fields, with messages that name the field, what came and what is allowed."""

from __future__ import annotations

import math

__all__ = ["name_or_none", "number", "whole_number"]


def number(
    owner: str, name: str, value: object, low: float = 0.0, *, above: bool = False, high: float = math.inf
) -> float:
    """``value`` as a finite float of at least ``low`` (or above it), and at most ``high``.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range, infinite or NaN.
    """
    allowed = f"a number {'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if math.isfinite(high) else "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} must be {allowed}, got {value!r:.80}")
    if not math.isfinite(value) or value < low or (above and value == low) or value > high:
        raise ValueError(f"{owner}: {name} must be {allowed}, got {value!r}")
    return float(value)


def whole_number(owner: str, name: str, value: object, low: int) -> int:
    """``value`` as an int of at least ``low``.

    Raises:
        TypeError: it is no int.
        ValueError: it is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be a whole number >= {low}, got {value!r:.80}")
    if value < low:
        raise ValueError(f"{owner}: {name} must be a whole number >= {low}, got {value}")
    return value


def name_or_none(owner: str, name: str, value: object, meaning: str) -> None:
    """Check that ``value`` is None or a string; an empty one is allowed, the root module has that name.

    Raises:
        TypeError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{owner}: {name} must be {meaning} or None, got {value!r:.80}")
