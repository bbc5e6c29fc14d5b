"""YAML as values that know their line: no object is ever made, and what a small file can grow to is bounded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

__all__ = ["FLOAT", "Scalar", "Value", "read_value"]

_MAX_CHARACTERS = 1 << 18
_MAX_VALUES = 10_000
_MAX_DEPTH = 16

_TAG = "tag:yaml.org,2002:"
Scalar: TypeAlias = "bool | int | float | str | None"

# The core schema of YAML 1.2: 2:4 is text, not 124 as in YAML 1.1; 1e-3 is a number, and "no" is text.
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_SCHEMA: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), "~nN"),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", re.compile(r"[-+]?[0-9]+$"), "-+0123456789"),
    ("float", FLOAT, "-+.0123456789"),
)
_READ: dict[str, Callable[[str], Scalar]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class _Loader(yaml.SafeLoader):
    """Parses only; its constructors are not used."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # the base class's own attribute


for _name, _pattern, _first in _SCHEMA:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, [*_first, *([""] if _name == "null" else [])])


@dataclass(frozen=True)
class Value:
    """A value in a file.

    Attributes:
        name: the file's, for messages.
        line: of the value, or of its key in a mapping; counted from 1.
        data: a plain value, a list, or key → value.
        text: as it is written, of a plain value.
    """

    name: str
    line: int
    data: bool | int | float | str | list[Value] | dict[str, Value] | None
    text: str = ""

    def error(self, message: str) -> ValueError:
        """An error at this place."""
        return ValueError(f"{self.name}:{self.line}: {message}")

    @property
    def shown(self) -> str:
        """The value as messages write it."""
        if isinstance(self.data, list):
            return "a list"
        if isinstance(self.data, dict):
            return "a mapping"
        return "nothing" if self.data is None and not self.text else f"{self.text!r:.80}"


def read_value(text: str, name: str) -> Value:
    """The one document in ``text``.

    Args:
        name: of the file, for messages.

    Raises:
        ValueError: no YAML, several documents, a key twice, a tag, or more or deeper values than any recipe has.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{name}:1: the file has {len(text)} characters; a recipe has at most {_MAX_CHARACTERS}")
    try:
        _check_events(text, name)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{name}:{line}: not valid YAML: {said}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{name}:{line}: not valid YAML: character U+{error.character:04X} is not allowed") from error
    if node is None:
        raise ValueError(f"{name}:1: the file is empty; a recipe needs a list of stages")
    return _Builder(name).value(node, node.start_mark.line + 1, 0)


def _check_events(text: str, name: str) -> None:
    """Refuse deep nesting before the composer, which recurses, and further documents, which it does not number."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"{name}:{line}: nested deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ValueError(f"{name}:{line}: a second document begins here; write one recipe per file")


class _Builder:
    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def value(self, node: yaml.Node, line: int, depth: int) -> Value:
        """The value of a node; aliases count every time that they are used."""
        self._count += 1
        if self._count > _MAX_VALUES or depth > _MAX_DEPTH:
            limit = f"{_MAX_VALUES} values" if self._count > _MAX_VALUES else f"{_MAX_DEPTH} levels"
            raise ValueError(f"{self._name}:{line}: more than {limit}; aliases (*name) that grow are not allowed")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != _TAG + kind:
            raise self._tag_error(node, line)
        if isinstance(node, yaml.SequenceNode):
            items = [self.value(item, item.start_mark.line + 1, depth + 1) for item in node.value]
            return Value(self._name, line, items)
        return self._mapping(node, line, depth)

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Value:
        read = _READ.get(node.tag.removeprefix(_TAG)) if node.tag.startswith(_TAG) else None
        if read is None:
            raise self._tag_error(node, line)
        try:
            return Value(self._name, line, read(node.value), node.value)
        except ValueError:
            raise ValueError(f"{self._name}:{line}: {node.value!r:.80} is not a number") from None

    def _mapping(self, node: yaml.MappingNode, line: int, depth: int) -> Value:
        result: dict[str, Value] = {}
        for key, item in node.value:
            place = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{self._name}:{place}: a key must be a name, not a list or mapping")
            if key.value in result:
                first = result[key.value].line
                raise ValueError(f"{self._name}:{place}: {key.value!r:.80} is given twice; it is in line {first} too")
            result[key.value] = self.value(item, place, depth + 1)
        return Value(self._name, line, result)

    def _tag_error(self, node: yaml.Node, line: int) -> ValueError:
        tag = node.tag.replace(_TAG, "!!")
        return ValueError(f"{self._name}:{line}: tag {tag!r:.80} is not allowed; write plain values")
