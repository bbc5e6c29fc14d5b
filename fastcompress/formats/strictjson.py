"""JSON as checkpoints use it: no duplicate keys, no NaN, one canonical spelling; every fault is a ``ValueError``."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

__all__ = ["digest", "dumps", "loads"]


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} appears twice in one object")
            seen.add(key)
    return result


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON strictly.

    Raises:
        ValueError: not UTF-8, not JSON, duplicate keys, NaN or infinity, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any, indent: int | None = None) -> str:
    """Write JSON with sorted keys; NaN, infinity and too deep nesting are a ``ValueError``."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, sort_keys=True, indent=indent, separators=separators, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical spelling: the same for every layout of white space and order of keys."""
    return hashlib.sha256(dumps(value).encode("ascii")).hexdigest()
