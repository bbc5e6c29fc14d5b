"""Recipes as YAML files: checked against the stages' fields, every error with its line.

epochs: 8
learning_rate: cosine
max_drop: 0.01
stages:
  - pruning: {sparsity: 0.9, pattern: 4x4, start: 0, end: 6}
  - distillation: {teacher: dense, losses: [logits, feature], temperature: 4.0}
  - qat: {scheme: W8A8, start: 5, freeze_at: 7}
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from fastcompress.distillation import SelfDistillation

from .stages import DENSE_TEACHER, QAT, Distillation, Pruning, Stage

__all__ = ["RecipeFile", "load_recipe", "parse_recipe"]

#: What a file may say besides ``stages``: arguments of `compress`.
SETTINGS: tuple[str, ...] = ("epochs", "learning_rate", "max_drop", "clip_norm", "seed")

_STAGES: dict[str, type[Stage]] = {"pruning": Pruning, "distillation": Distillation, "qat": QAT}

#: Fields whose words must not be taken for numbers: ``2:4`` is one in YAML 1.1.
_WORDS = ("pattern",)

#: A recipe is a page of text.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says: the stages, and arguments for `compress`."""

    stages: tuple[Stage, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def load_recipe(path: str | Path) -> RecipeFile:
    """Read a recipe file.

    A distillation's teacher is ``dense`` (the network before compression), ``self``, or ``module:callable``, which is
    imported and called.

    Raises:
        FileNotFoundError: no such file. ValueError: whatever is wrong in it, with file and line.

    Example:
        >>> fc.recipes.load_recipe("recipe.yaml").stages
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_recipe: {path} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"load_recipe: {path} has {path.stat().st_size} bytes; a recipe has at most {_MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, name: str = "recipe") -> RecipeFile:
    """Read a recipe from a string; ``name`` stands for the file in messages."""
    reader = _Reader(text, name)
    root = reader.mapping(reader.root(), (*SETTINGS, "stages"), "the recipe")
    if "stages" not in root:
        raise ValueError(f"{name}:1: the recipe has no stages; list them under 'stages:'")
    listed = root.pop("stages")[1]
    if not isinstance(listed, yaml.SequenceNode):
        raise reader.error(listed, "stages must be a list, each entry one stage such as '- pruning: {sparsity: 0.9}'")
    return RecipeFile(
        tuple(reader.stage(node) for node in listed.value), {key: reader.value(node) for key, (_, node) in root.items()}
    )


class _Reader:
    """YAML nodes of one file to stages; nodes know their lines."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._loader = yaml.SafeLoader(text)

    def root(self) -> yaml.Node:
        try:
            node = self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
            raise ValueError(f"{self._name}:{line}: not valid YAML: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{self._name}: not valid YAML: {error}") from error
        if node is None:
            raise ValueError(f"{self._name}:1: the file is empty")
        return cast(yaml.Node, node)

    def error(self, node: yaml.Node, message: str) -> ValueError:
        return ValueError(f"{self._name}:{node.start_mark.line + 1}: {message}")

    def value(self, node: yaml.Node, *, word: bool = False) -> Any:
        if word and isinstance(node, yaml.ScalarNode):
            return node.value
        try:
            return self._loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise self.error(node, f"cannot be read: {getattr(error, 'problem', None) or error}") from error

    def mapping(self, node: yaml.Node, allowed: Iterable[str], what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key → (its node, its value's node), checked for unknown and repeated keys."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a mapping such as 'name: value'")
        allowed, found = tuple(allowed), {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key not in allowed:
                close = difflib.get_close_matches(str(key), allowed, 1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(allowed)}"
                raise self.error(key_node, f"{what}: unknown field {key!r:.60}{hint}")
            if key in found:
                raise self.error(key_node, f"{what}: field {key!r} is given twice")
            found[key] = (key_node, value_node)
        return found

    def stage(self, node: yaml.Node) -> Stage:
        entry = self.mapping(node, tuple(_STAGES), "a stage")
        if len(entry) != 1:
            raise self.error(node, f"an entry of stages names one stage, this one {len(entry)}")
        (kind, (_, body)), *_ = entry.items()
        made = _STAGES[kind]
        fields = {f.name: f for f in dataclasses.fields(made) if f.name != "cache"}
        parts = self.mapping(body, tuple(fields), made.__name__)
        for name, each in fields.items():
            if each.default is dataclasses.MISSING and name not in parts:
                raise self.error(node, f"{made.__name__}: field {name!r} is missing")
        values = {name: self.value(part, word=name in _WORDS) for name, (_, part) in parts.items()}
        if "teacher" in values:
            values["teacher"] = self._teacher(parts["teacher"][1], values["teacher"])
        try:
            return made(**values)
        except (TypeError, ValueError) as error:
            named = [part for name, (_, part) in parts.items() if f" {name} " in f" {error} "]
            raise self.error((named or [body])[0], str(error)) from error

    def _teacher(self, node: yaml.Node, name: object) -> Any:
        if name == DENSE_TEACHER:
            return name
        if name == "self":
            return SelfDistillation()
        module, colon, path = str(name).partition(":")
        if not colon:
            raise self.error(
                node, f"Distillation: teacher must be 'dense', 'self' or 'module:callable', got {name!r:.60}"
            )
        try:
            made: Any = importlib.import_module(module)
            for part in path.split("."):
                made = getattr(made, part)
            return made()
        except Exception as error:  # whatever a foreign module raises
            raise self.error(node, f"Distillation: teacher {name!r} failed: {type(error).__name__}: {error}") from error
