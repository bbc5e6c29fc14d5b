"""Which modules of a model a function works on: all layers it knows, narrowed by ``targets`` and ``ignore``."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import nn

__all__ = [
    "Candidate",
    "Selection",
    "Target",
    "Wording",
    "matched",
    "module_names",
    "shown",
    "target_tuple",
    "tied_groups",
    "unwanted",
]

#: A module name, a ``"re:…"`` pattern that must match a whole module name, or a module class.
Target: TypeAlias = "str | type[nn.Module]"


@dataclass(frozen=True)
class Candidate:
    """A module that might be compressed; ``names`` are all its places in the model, the first one is its name."""

    names: tuple[str, ...]
    module: nn.Module

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def kind(self) -> str:
        """The module's class; a parametrized module counts as what it was before."""
        return nn.utils.parametrize.type_before_parametrizations(self.module).__name__


class Selection(Protocol):
    """A configuration that says which layers are meant."""

    @property
    def targets(self) -> tuple[Target, ...] | None: ...

    @property
    def ignore(self) -> tuple[Target, ...]: ...


@dataclass(frozen=True)
class Wording:
    """How messages speak: the public function, and what it does to a layer."""

    function: str = "quantize"
    done: str = "quantized"


_QUANTIZE = Wording()


def module_names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Module → all names under which it is registered, in order."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(found) for module, found in names.items()}


def tied_groups(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Modules that share one weight parameter without being the same module; groups of two or more."""
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append((name, module))
    return [group for group in owners.values() if len(group) > 1]


def unwanted(
    model: nn.Module, candidates: Iterable[Candidate], config: Selection, wording: Wording = _QUANTIZE
) -> dict[str, str]:
    """The candidates that ``targets`` and ``ignore`` leave out: name → reason.

    An entry selects the modules it matches and everything inside them.

    Raises:
        ValueError: an entry matches no candidate.
    """
    candidates = list(candidates)
    result: dict[str, str] = {}
    if config.targets is not None:
        chosen: set[str] = set()
        for target in config.targets:
            chosen |= matched(model, candidates, target, "targets", wording)
        result |= {c.name: "not among the targets" for c in candidates if c.name not in chosen}
    for target in config.ignore:
        for name in matched(model, candidates, target, "ignore", wording):
            result[name] = f"ignored by {shown(target)}"
    return result


def matched(
    model: nn.Module, candidates: Sequence[Candidate], target: Target, argument: str, wording: Wording = _QUANTIZE
) -> set[str]:
    """Names of the candidates at or below the modules that ``target`` selects.

    Raises:
        ValueError: there are none; the message names ``argument`` and offers close names.
    """
    roots: list[str] = []
    if isinstance(target, str) and not target.startswith("re:"):
        roots = [target]
    else:
        for name, module in model.named_modules(remove_duplicate=False):
            if re.fullmatch(target[3:], name) if isinstance(target, str) else isinstance(module, target):
                roots.append(name)
    exact, prefixes = set(roots), tuple(f"{root}." if root else "" for root in roots)
    found = {c.name for c in candidates if any(n in exact or (prefixes and n.startswith(prefixes)) for n in c.names)}
    if not found:
        raise ValueError(_nothing(model, candidates, target, argument, wording))
    return found


def shown(target: Target) -> str:
    """A target as messages write it."""
    return repr(target) if isinstance(target, str) else target.__name__


def target_tuple(function: str, name: str, value: object) -> tuple[Target, ...]:
    """The targets in ``value`` (one, or an iterable of them) as a tuple.

    Args:
        function: the public function or class, for messages.
        name: the argument, for messages.

    Raises:
        TypeError: an entry is no string and no module class.
        ValueError: an entry is no regular expression.
    """
    if isinstance(value, (str, type)):
        value = (value,)
    if not isinstance(value, Iterable):
        raise TypeError(f"{function}: {name} must hold module names, 're:…' patterns or classes, got {value!r:.80}")
    entries = tuple(value)
    for entry in entries:
        if isinstance(entry, type) and issubclass(entry, nn.Module):
            continue
        if not isinstance(entry, str):
            raise TypeError(
                f"{function}: {name} holds {entry!r:.80}; allowed are module names, 're:…' patterns and module classes"
            )
        if entry.startswith("re:"):
            try:
                re.compile(entry[3:])
            except re.error as error:
                raise ValueError(f"{function}: {name}: {entry!r:.80} is no regular expression: {error}") from error
    return entries


def _nothing(model: nn.Module, candidates: Sequence[Candidate], target: Target, argument: str, wording: Wording) -> str:
    message = f"{wording.function}: {argument} entry {shown(target)} matches no layer that can be {wording.done}"
    names = [name for c in candidates for name in c.names]
    if not names:
        return f"{message}; {type(model).__name__} has none"
    if isinstance(target, str) and not target.startswith("re:"):
        if target in dict(model.named_modules(remove_duplicate=False)):
            return f"{message}; a module of that name exists, but holds no linear or convolution"
        close = difflib.get_close_matches(target, names, 3)
        return f"{message}; " + (f"close names: {', '.join(close)}" if close else f"names look like {names[0]!r}")
    if isinstance(target, str):
        return f"{message}; the pattern must match a whole module name, such as {names[0]!r}"
    return f"{message}; classes here: {', '.join(sorted({c.kind for c in candidates}))}"
