"""A recipe as YAML text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from torch import nn

from fastcompress.distillation import DistillationLoss, SelfDistillation, TeacherCache

from .run_settings import RunSettings
from .stages import SELF_TEACHER, Stage
from .yaml_values import FLOAT

__all__ = ["dump_recipe"]


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def dump_recipe(
    stages: Stage | Iterable[Stage], settings: RunSettings | None = None, *, teacher: str | None = None
) -> str:
    """YAML from which `load_recipe` reads equal stages and settings; what has its default value is left out.

    Args:
        stages, settings: of the recipe.
        teacher: ``module:callable`` that makes the teacher, for stages whose teacher is a network.

    Raises:
        TypeError, ValueError: something that text cannot hold: a network as teacher, a module class as target, a loss
            of your own, a learning rate that is a function.

    Example:
        >>> Path("recipe.yaml").write_text(fc.recipes.dump_recipe(stages, fc.recipes.RunSettings(epochs=8)))
    """
    listed = (stages,) if isinstance(stages, Stage) else tuple(stages)
    for stage in listed:
        if not isinstance(stage, Stage):
            raise TypeError(f"dump_recipe: stages holds a {type(stage).__name__}; allowed are recipe stages")
    given = {} if settings is None else _changed(settings)
    if callable(given.get("learning_rate")):
        raise ValueError("dump_recipe: learning_rate is a function, which text cannot hold; use a name")
    if "autocast" in given:
        given["autocast"] = str(given["autocast"]).removeprefix("torch.")
    text = _yaml(given, flow=False) if given else ""
    lines = [f"  - {_entry(stage.kind, _stage(stage, teacher))}\n" for stage in listed]
    return text + ("stages:\n" + "".join(lines) if lines else "stages: []\n")


def _stage(stage: Stage, teacher: str | None) -> dict[str, Any]:
    fields = _changed(stage)
    for name, value in fields.items():
        if isinstance(value, nn.Module):
            if teacher is None:
                raise ValueError(
                    f"dump_recipe: the teacher is a {type(value).__name__}, which text cannot hold; pass "
                    "teacher='module:callable', which makes it"
                )
            fields[name] = teacher
        else:
            fields[name] = _plain(name, value)
    return fields


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, type):
        raise ValueError(
            f"dump_recipe: {name} holds the class {value.__name__}, which text cannot hold; name the modules, or write "
            "a pattern 're:…'"
        )
    if isinstance(value, SelfDistillation):
        return _changed(value) or SELF_TEACHER
    if isinstance(value, TeacherCache):
        return {"directory": str(value.directory), "max_bytes": value.max_bytes, "recompute": value.recompute}
    if isinstance(value, DistillationLoss):
        if not type(value).__module__.startswith("fastcompress."):
            raise ValueError(f"dump_recipe: {name} holds a {type(value).__name__} of your own, which text cannot hold")
        return {value.label: _changed(value)}
    return value


def _changed(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that have not their default value."""
    fields = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
    return {
        name: given for name, (given, default) in fields.items() if default is dataclasses.MISSING or given != default
    }


def _entry(kind: str, fields: dict[str, Any]) -> str:
    return f"{kind}: {_yaml(fields, flow=True).rstrip()}" if fields else kind


def _yaml(value: Any, flow: bool) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return text
