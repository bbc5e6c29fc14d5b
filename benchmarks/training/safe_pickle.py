"""Unpickling CIFAR-10's Python files without running what a file may ask for.

`load_plain` builds dicts, lists, tuples, strings, bytes, numbers, and byte arrays of numpy. Everything that a pickle
may name is replaced by a stand-in of this file: no code of numpy or of anybody else is looked up, and the only memory
an array takes is the bytes that stand in the file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["load_plain"]

#: numpy moved its core package in version 2; files carry the name of the version that wrote them.
_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")


class _StandIn:
    """What a file gets in place of a global: it can be called, and never changed."""

    __slots__ = ("_make", "_name")
    _make: Callable[..., Any] | None
    _name: str

    def __init__(self, name: str, make: Callable[..., Any] | None) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        if self._make is None:
            raise pickle.UnpicklingError(f"calls {self._name}")
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"changes {self._name}")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"changes {self._name}")


class _ByteType:
    """The element type of an array; only unsigned bytes are allowed."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignore the details: single bytes have no order and no alignment."""


class _Array:
    """An array whose content arrives in a second step, as numpy's pickles have it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("holds an array whose state is not (version, shape, dtype, order, bytes)")
        _, shape, element, fortran, content = state
        if not isinstance(element, _ByteType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("holds an array that is not of unsigned bytes")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"holds an array of shape {shape!r:.60}")
        count = 1
        for size in shape:
            count *= size
        if count != len(content):
            raise pickle.UnpicklingError(f"holds an array of shape {shape} with {len(content)} bytes")
        flat = np.frombuffer(content, dtype=np.uint8)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _element(code: Any, *_: Any) -> _ByteType:
    name = code.decode("latin1") if isinstance(code, bytes) else code
    if name not in ("u1", "|u1", "B"):
        raise pickle.UnpicklingError(f"holds an array of elements {name!r:.40}, allowed: unsigned bytes (u1)")
    return _ByteType()


def _latin1(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes into pickles for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("calls _codecs.encode with something that is not latin1 text")
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):
    # The unpickler written in Python: the one in C makes its memo as large as the indices in the file, gigabytes if so.

    def find_class(self, module: str, name: str) -> Any:
        if module in _CORES and name == "_reconstruct":
            return _StandIn(f"{module}.{name}", lambda *_: _Array())
        if (module, name) == ("numpy", "ndarray"):
            return _StandIn("numpy.ndarray", None)
        if (module, name) == ("numpy", "dtype"):
            return _StandIn("numpy.dtype", _element)
        if (module, name) == ("_codecs", "encode"):
            return _StandIn("_codecs.encode", _latin1)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no CIFAR-10 file needs")


def load_plain(content: bytes) -> dict[str, Any]:
    """Unpickle a dictionary of plain values and byte arrays; text keys come back as str, whoever wrote them.

    Args:
        content: the pickle, from Python 2 or 3, protocols 0 to 4.

    Returns:
        The dictionary; arrays are uint8 and read-only.

    Raises:
        ValueError: not a pickle, cut off, not a dictionary, or it asks for anything else; the message says what.

    Example:
        >>> load_plain(pickle.dumps({"labels": [3, 1]}))
        {'labels': [3, 1]}
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in every way there is
        raise ValueError(f"not a plain pickle: {str(error) or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, expected a dictionary")
    plain = {}
    for key, item in value.items():
        name = key.decode("latin1") if isinstance(key, bytes) else key
        if not isinstance(name, str):
            raise ValueError(f"has the key {key!r:.40}, expected text")
        plain[name] = item.value if isinstance(item, _Array) else item
    return plain
