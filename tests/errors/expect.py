"""Exact error messages: they are part of the interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["error"]


@contextmanager
def error(kind: type[Exception], message: str) -> Iterator[None]:
    """The block raises exactly this type or a subclass, with exactly this message."""
    with pytest.raises(kind) as caught:
        yield
    assert str(caught.value) == message
