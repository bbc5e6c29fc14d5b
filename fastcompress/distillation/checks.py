"""Checks of configuration fields, with messages that name the field, what came and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

__all__ = ["choice", "name_or_none", "nearest", "number", "whole_number"]


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


def choice(owner: str, name: str, value: object, allowed: Iterable[str]) -> None:
    """Check that ``value`` is one of the strings in ``allowed``.

    Raises:
        TypeError: it is no string.
        ValueError: it is another string; the message offers the nearest.
    """
    options = list(allowed)
    listed = ", ".join(repr(option) for option in options)
    if not isinstance(value, str):
        raise TypeError(f"{owner}: {name} must be one of {listed}, got {value!r:.80}")
    if value not in options:
        raise ValueError(f"{owner}: {name} {value!r:.80} is unknown; valid are {listed}{nearest(value, options, 1)}")


def nearest(value: str, options: Iterable[str], count: int = 3) -> str:
    """``"; did you mean …?"`` with up to ``count`` of ``options`` that resemble ``value``, or nothing."""
    close = difflib.get_close_matches(value, list(options), count)
    return f"; did you mean {' or '.join(repr(entry) for entry in close)}?" if close else ""
