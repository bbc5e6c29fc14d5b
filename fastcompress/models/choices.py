"""Arguments that are one of some names: the check that every configuration shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["check_choice", "nearest"]


def check_choice(owner: str, name: str, value: object, allowed: Iterable[str]) -> None:
    """Check that ``value`` is one of the strings in ``allowed``.

    Args:
        owner: the function or class that messages speak for.
        name: of the argument.

    Raises:
        TypeError: it is no string.
        ValueError: it is another string; the message lists all and offers the nearest.
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
