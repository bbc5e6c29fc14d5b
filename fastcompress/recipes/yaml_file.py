"""Recipe files: stages and settings of a run in YAML, checked line by line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcompress.distillation import SelfDistillation, TeacherCache
from fastcompress.distillation.resolve import LOSSES
from fastcompress.references import call_reference, is_reference

from .optimizers import LEARNING_RATES
from .recipe import check_recipe
from .run_settings import AUTOCAST_DTYPES, RunSettings
from .stages import DENSE_TEACHER, QAT, SELF_TEACHER, Distillation, Pruning, Stage
from .yaml_fields import Reader, build, unknown
from .yaml_values import Value, read_value

__all__ = ["RecipeFile", "load_recipe", "parse_recipe", "read_recipe"]

_STAGES: dict[str, type[Stage]] = {kind.kind: kind for kind in (Pruning, Distillation, QAT)}
#: A recipe is a page of text.
_MAX_BYTES = 1 << 18

_LAYOUT = "write 'stages:' and below it a list such as '- pruning: {sparsity: 0.9, pattern: 4x4}'"


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file holds.

    Attributes:
        stages: in the file's order.
        settings: those that are in the file; the others are None.
        name: of the file, for messages.
    """

    stages: tuple[Stage, ...]
    settings: RunSettings = field(default_factory=RunSettings)
    name: str = field(default="recipe", compare=False)


def load_recipe(path: str | Path, *, epochs: int | None = None) -> RecipeFile:
    """Read a recipe file.

    The file is a mapping with ``stages``, a list of ``pruning``, ``distillation`` and ``qat`` with their fields, and
    the fields of `RunSettings`. A teacher is ``dense`` (the network before compression), ``self`` (or a mapping of the
    fields of `SelfDistillation`) or ``module:callable``, which is imported and called: read recipes of people you
    trust. A loss is a name, or a name with fields: ``feature: {student_tap: layer2}``; a cache is a directory, or a
    mapping of the arguments of `TeacherCache`. Values follow YAML 1.2: ``2:4`` is text, ``1e-3`` a number.

    Args:
        path: of the file.
        epochs: of the run, where it is not the file's own number; the stages' times are checked against it.

    Raises:
        ValueError: whatever is wrong in the file, with its name and the line. OSError: it cannot be read.

    Example:
        >>> recipe = fc.recipes.load_recipe("recipe.yaml")
        >>> fc.compress(model, recipe, loader, eval_fn=accuracy)

    Source: the YAML 1.2 specification, core schema (section 10.3).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_recipe: {path} does not exist, or is no file")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"load_recipe: {path} has {path.stat().st_size} bytes; a recipe has at most {_MAX_BYTES}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not UTF-8 text ({error.reason})") from error
    return parse_recipe(text, str(path), epochs=epochs)


def parse_recipe(text: str, name: str = "recipe", *, epochs: int | None = None) -> RecipeFile:
    """Read a recipe from a string; ``name`` stands for the file in messages. The rest is as in `load_recipe`."""
    root = read_value(text, name)
    if not isinstance(root.data, dict):
        raise root.error(f"the recipe must be a mapping with stages, got {root.shown}; {_LAYOUT}")
    known = [f.name for f in dataclasses.fields(RunSettings)] + ["stages"]
    for key, item in root.data.items():
        if key not in known:
            raise unknown(item, "the recipe", "field", key, known)
    if "stages" not in root.data:
        raise ValueError(f"{name}:1: the recipe has no stages; {_LAYOUT}")
    listed = root.data["stages"]
    if not isinstance(listed.data, list):
        raise listed.error(f"stages must be a list, got {listed.shown}; {_LAYOUT}")
    stages = tuple(_stage(item) for item in listed.data)
    own = Value(name, root.line, {key: item for key, item in root.data.items() if key != "stages"})
    settings = build(RunSettings, own, {"autocast": _autocast, "learning_rate": _learning_rate}, "the recipe")
    of_run = settings.epochs if epochs is None else epochs
    if of_run is not None:
        try:
            check_recipe(stages, of_run)
        except (TypeError, ValueError) as error:
            raise listed.error(str(error).removeprefix("compress: ")) from error
    return RecipeFile(stages, settings, name)


def read_recipe(
    recipe: Stage | Iterable[Stage] | str | Path | RecipeFile, given: RunSettings
) -> tuple[tuple[Stage, ...], RunSettings]:
    """The stages of a recipe in any form, checked for the run, and its settings; what is ``given`` goes first.

    Raises:
        TypeError, ValueError: wrong stages, or nobody said how many epochs.
    """
    if isinstance(recipe, (str, Path)):
        found = load_recipe(recipe, epochs=given.epochs)
    elif isinstance(recipe, RecipeFile):
        found = recipe
    else:
        return check_recipe(recipe, given.required()[0]), given
    run = given.or_else(found.settings)
    return check_recipe(found.stages, run.required()[0]), run


def _stage(value: Value) -> Stage:
    kind, fields = _name_and_fields(value, "stage")
    if kind not in _STAGES:
        raise unknown(value, "the recipe", "stage", kind, _STAGES)
    readers: dict[str, Reader] = {"teacher": _teacher, "losses": _losses, "cache": _cache}
    return build(_STAGES[kind], fields, readers if kind == Distillation.kind else None)


def _name_and_fields(value: Value, what: str) -> tuple[str, Value]:
    """``name``, or ``name: {fields}``."""
    if isinstance(value.data, str):
        return value.data, Value(value.name, value.line, None)
    if not isinstance(value.data, dict) or len(value.data) != 1:
        count = f"a mapping with {len(value.data)} keys" if isinstance(value.data, dict) else value.shown
        raise value.error(f"a {what} is written 'name: {{fields}}', one in each list entry, got {count}")
    return next(iter(value.data.items()))


def _teacher(value: Value) -> nn.Module | SelfDistillation | str:
    if isinstance(value.data, dict):
        return build(SelfDistillation, value)
    if value.data == DENSE_TEACHER:
        return DENSE_TEACHER
    if value.data == SELF_TEACHER:
        return SelfDistillation()
    if not isinstance(value.data, str) or not is_reference(value.data):
        raise value.error(
            f"Distillation: teacher must be {DENSE_TEACHER!r}, {SELF_TEACHER!r} or 'module:callable', or a mapping of "
            f"SelfDistillation's fields, got {value.shown}"
        )
    try:
        teacher = call_reference(value.data)
    except Exception as error:
        raise value.error(f"Distillation: teacher {value.data!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(teacher, nn.Module):
        raise value.error(
            f"Distillation: teacher {value.data} returned a {type(teacher).__name__}, not a torch.nn.Module"
        )
    return teacher


def _losses(value: Value) -> tuple[Any, ...]:
    return tuple(_loss(item) for item in (value.data if isinstance(value.data, list) else [value]))


def _loss(value: Value) -> Any:
    label, fields = _name_and_fields(value, "loss")
    if label not in LOSSES:
        raise unknown(value, "Distillation", "loss", label, LOSSES)
    return label if isinstance(value.data, str) else build(LOSSES[label], fields)


def _cache(value: Value) -> TeacherCache | None:
    if value.data is None:
        return None
    if isinstance(value.data, str):
        value = Value(value.name, value.line, {"directory": value})
    return build(TeacherCache, value, {"directory": lambda item: item.data})


def _autocast(value: Value) -> torch.dtype | None:
    if value.data is None:
        return None
    if value.data not in AUTOCAST_DTYPES:
        raise value.error(f"the recipe: autocast must be {' or '.join(AUTOCAST_DTYPES)}, got {value.shown}")
    dtype: torch.dtype = getattr(torch, str(value.data))
    return dtype


def _learning_rate(value: Value) -> str | None:
    if value.data is None or value.data in tuple(LEARNING_RATES):
        return value.data  # type: ignore[return-value]  # the names are text
    if isinstance(value.data, str):
        raise unknown(value, "the recipe", "learning_rate", value.data, LEARNING_RATES)
    raise value.error(f"the recipe: learning_rate must be {' or '.join(LEARNING_RATES)}, got {value.shown}")
