"""Typed access to JSON objects from untrusted files: wrong types, values out of range and unknown keys are errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["Fields"]

_INT32_MAX = 2**31 - 1


class Fields:
    """Takes the values of one JSON object apart, key by key; `finish` then refuses what is left over.

    Every method raises ``ValueError`` with a message that names ``where`` and the key.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a JSON object, is {type(value).__name__}")
        self._rest: dict[str, Any] = dict(value)
        self._where = where

    def error(self, key: str, problem: str) -> ValueError:
        """A ``ValueError`` about ``key``."""
        return ValueError(f"{self._where}: {key}: {problem}")

    def any(self, key: str) -> Any:
        """The value of a required key, whatever its type."""
        if key not in self._rest:
            raise self.error(key, "is missing")
        return self._rest.pop(key)

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and was not read yet."""
        return key in self._rest

    def takes(self, key: str, value: str) -> bool:
        """Whether ``key`` is exactly this string; then it is read, otherwise it is left for another reader."""
        found = self._rest.get(key)
        if not isinstance(found, str) or found != value:
            return False
        del self._rest[key]
        return True

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        if self._rest:
            raise ValueError(f"{self._where}: unknown field {min(self._rest)!r:.80}")

    def string(self, key: str, allowed: Collection[str] | None = None) -> str:
        """A string, one of ``allowed`` if given."""
        value = self.any(key)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, is {type(value).__name__}")
        if allowed is not None and value not in allowed:
            raise self.error(key, f"{value!r:.60} is not one of {', '.join(sorted(allowed))}")
        return value

    def boolean(self, key: str) -> bool:
        """A JSON boolean."""
        value = self.any(key)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {type(value).__name__}")
        return value

    def integer(self, key: str, low: int = 1, high: int = _INT32_MAX) -> int:
        """An integer in ``[low, high]``."""
        return self._integer(key, self.any(key), low, high)

    def integers(self, key: str, count: int, low: int = 1, high: int = _INT32_MAX) -> tuple[int, ...]:
        """A list of ``count`` integers in ``[low, high]``."""
        value = self.any(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(key, f"must be a list of {count} integers")
        return tuple(self._integer(key, item, low, high) for item in value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A JSON object."""
        value = self.any(key)
        if not isinstance(value, dict):
            raise self.error(key, f"must be a JSON object, is {type(value).__name__}")
        return value

    def _integer(self, key: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"must be an integer, is {type(value).__name__}")
        if not low <= value <= high:
            raise self.error(key, f"must lie in [{low}, {high}]")
        return value
