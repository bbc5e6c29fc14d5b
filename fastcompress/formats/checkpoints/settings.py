"""Typed access to settings that other tools wrote: unknown keys are left alone, wrong values are errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["Settings", "UnsupportedScheme"]


class UnsupportedScheme(ValueError):
    """The settings mean something, but nothing that this library runs."""


class Settings:
    """One JSON object of settings; every method raises ``ValueError`` that names ``where`` and the key."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a JSON object, is {type(value).__name__}")
        self._values: Mapping[str, Any] = value
        self.where = where

    def error(self, key: str, problem: str) -> ValueError:
        """A ``ValueError`` about `key`."""
        return ValueError(f"{self.where}: {key}: {problem}")

    def any(self, *keys: str) -> Any:
        """The value of the first of these keys that is there and not null; else None."""
        return next((self._values[key] for key in keys if self._values.get(key) is not None), None)

    def string(self, *keys: str, default: str | None = None, allowed: Collection[str] | None = None) -> str:
        """A string in lower case, one of `allowed` if given."""
        value = self.any(*keys)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(keys[0], "is missing" if value is None else f"must be a string, is {type(value).__name__}")
        if allowed is not None and value.lower() not in allowed:
            raise UnsupportedScheme(
                f"{self.where}: {keys[0]}: {value!r:.60} is not supported; allowed: {', '.join(sorted(allowed))}"
            )
        return value.lower()

    def boolean(self, key: str, default: bool) -> bool:
        """A JSON boolean."""
        value = self.any(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {type(value).__name__}")
        return value

    def integer(self, *keys: str, default: int | None = None) -> int:
        """An integer."""
        value = self.any(*keys)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(keys[0], "is missing" if value is None else f"must be an integer, is {value!r:.60}")
        return value

    def bits(self, *keys: str, allowed: tuple[int, ...]) -> int:
        """A number of bits that this library has kernels for."""
        bits = self.integer(*keys)
        if bits not in allowed:
            raise UnsupportedScheme(
                f"{self.where}: {keys[0]}: {bits!r:.20} bits are not supported; allowed: "
                f"{' and '.join(map(str, allowed))}"
            )
        return bits

    def group_size(self, *keys: str) -> int | None:
        """Inputs that share a scale; None (in files -1) for all of them."""
        size = self.integer(*keys, default=-1)
        if size == -1:
            return None
        if size < 8 or size % 8 or size > 2**31 - 1:
            raise self.error(keys[0], f"must be -1 or a positive multiple of 8, is {size!r:.40}")
        return size

    def refuse(self, *keys: str) -> None:
        """Settings that must not be on (absent, null, false or empty)."""
        for key in keys:
            if self._values.get(key):
                raise UnsupportedScheme(f"{self.where}: {key}: is not supported, got {self._values[key]!r:.80}")
