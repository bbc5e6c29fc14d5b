"""From values in a file to objects: names, types and requirements are those of the classes themselves."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .yaml_values import Value

__all__ = ["Reader", "build", "unknown"]

T = TypeVar("T")

#: Reads a field that has a notation of its own.
Reader = Callable[[Value], Any]


class _Mismatch(Exception):
    """The value has not the type."""


def unknown(value: Value, owner: str, what: str, given: str, allowed: Iterable[str]) -> ValueError:
    """The error about a name that does not exist; it offers the closest, or all."""
    listed = list(allowed)
    close = difflib.get_close_matches(given, listed, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(listed)}"
    return value.error(f"{owner}: unknown {what} {given!r:.80}; {hint}")


def build(kind: type[T], value: Value, readers: Mapping[str, Reader] | None = None, owner: str | None = None) -> T:
    """An object of class ``kind`` from a mapping of its arguments; nothing stands for no arguments.

    Args:
        readers: of fields with a notation of their own.
        owner: what messages call it; by default the class.

    Raises:
        ValueError: an unknown, missing or wrong field.
    """
    name = owner or kind.__name__
    fields = value.data
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise value.error(f"{name}: expected a mapping of its fields, got {value.shown}")
    parameters = inspect.signature(kind).parameters
    hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
    given: dict[str, Any] = {}
    for field, item in fields.items():
        if field not in parameters:
            raise unknown(item, name, "field", field, parameters)
        given[field] = readers[field](item) if readers and field in readers else _read(name, field, item, hints[field])
    for field, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and field not in given:
            raise value.error(f"{name}: field {field!r} is missing")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise _place(value, fields, str(error)).error(f"{name}: {_without_owner(str(error))}") from error


def _read(owner: str, field: str, value: Value, hint: Any) -> Any:
    try:
        return _converted(value, hint)
    except _Mismatch:
        raise value.error(f"{owner}: {field} must be {_described(hint)}, got {value.shown}") from None


def _converted(value: Value, hint: Any) -> Any:
    data, origin = value.data, typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(hint):
            try:
                return _converted(value, choice)
            except _Mismatch:
                continue
    elif hint is types.NoneType and data is None:
        return None
    elif type(data) is hint or (hint is float and type(data) is int):
        return data
    elif origin is tuple:
        items = data if isinstance(data, list) else [value]
        return tuple(_converted(_named(item), typing.get_args(hint)[0]) for item in items)
    elif origin is not None and issubclass(origin, Mapping) and isinstance(data, dict):
        return {key: _converted(item, typing.get_args(hint)[1]) for key, item in data.items()}
    raise _Mismatch


def _named(value: Value) -> Value:
    """In a list of names a number is a name: a ``Sequential`` calls its layers 0, 1, 2."""
    return dataclasses.replace(value, data=value.text) if type(value.data) is int else value


def _described(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", types.NoneType: "null"}
    if hint in names:
        return names[hint]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_described(choice) for choice in typing.get_args(hint)]
        return " or ".join(part for part in parts if part)
    if origin is tuple:
        return "a list of text"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names to {_described(typing.get_args(hint)[1]).removeprefix('a ')}s"
    return ""


def _place(value: Value, fields: Mapping[str, Value], message: str) -> Value:
    """The field that a message speaks of first, or the whole."""
    words = (word.removesuffix("_step") for word in re.findall(r"\w+", message))
    return next((fields[word] for word in words if word in fields), value)


def _without_owner(message: str) -> str:
    """The message without the class in front, and with the times' names in a recipe, where steps are epochs."""
    return re.sub(r"\b(start|end|rewind)_step\b", r"\1", re.sub(r"^\w+: ", "", message, count=1))
