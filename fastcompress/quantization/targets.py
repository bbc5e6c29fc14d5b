"""Which modules of a model are quantized: all layers a scheme knows, narrowed by ``targets`` and ``ignore``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fastcompress.config import QuantConfig, Target
from fastcompress.quantization.adapters import is_adaptable

__all__ = ["Candidate", "find_candidates", "module_names", "unsupported_layers", "unsupported_reason", "unwanted"]

#: Layers with weights for which no int8 kernel exists; they are reported, never silently left out.
_UNSUPPORTED: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
    nn.MultiheadAttention,
)


@dataclass(frozen=True)
class Candidate:
    """A module that might be quantized; ``names`` are all its places in the model, the first one is its name."""

    names: tuple[str, ...]
    module: nn.Module

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def kind(self) -> str:
        return type(self.module).__name__


def module_names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Module → all names under which it is registered, in order."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(found) for module, found in names.items()}


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) or is_adaptable(module)


def find_candidates(model: nn.Module) -> list[Candidate]:
    """Every module that could be quantized, shared ones once, in the order of ``named_modules``."""
    return [Candidate(names, module) for module, names in module_names(model).items() if _is_candidate(module)]


def unsupported_layers(model: nn.Module) -> list[Candidate]:
    """Layers with weights that no int8 kernel exists for."""
    return [
        Candidate(names, module)
        for module, names in module_names(model).items()
        if isinstance(module, _UNSUPPORTED) and not _is_candidate(module)
    ]


def unsupported_reason(module: nn.Module) -> str:
    """Why a layer among `unsupported_layers` stays float."""
    if isinstance(module, nn.MultiheadAttention):
        return (
            "its input projections (in_proj) are parameters of the attention itself, no linear layer: they stay float"
        )
    return f"there is no int8 kernel for {type(module).__name__}"


def unwanted(model: nn.Module, candidates: Iterable[Candidate], config: QuantConfig) -> dict[str, str]:
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
            chosen |= _matched(model, candidates, target, "targets")
        result |= {c.name: "not among the targets" for c in candidates if c.name not in chosen}
    for target in config.ignore:
        for name in _matched(model, candidates, target, "ignore"):
            result[name] = f"ignored by {_shown(target)}"
    return result


def _shown(target: Target) -> str:
    return repr(target) if isinstance(target, str) else target.__name__


def _matched(model: nn.Module, candidates: list[Candidate], target: Target, argument: str) -> set[str]:
    """Names of the candidates at or below the modules that ``target`` selects."""
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
        raise ValueError(_nothing(model, candidates, target, argument))
    return found


def _nothing(model: nn.Module, candidates: list[Candidate], target: Target, argument: str) -> str:
    message = f"quantize: {argument} entry {_shown(target)} matches no layer that can be quantized"
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
