"""Checks that the configurations of this package share; messages speak for the public function they are called by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fastcompress.models.targets import Target, target_tuple

from .patterns import Pattern, parse_pattern

__all__ = [
    "check_seed",
    "checked_pattern",
    "checked_sparsities",
    "checked_sparsity",
    "config_json",
]


def check_seed(function: str, seed: object) -> None:
    """Raises ``TypeError`` or ``ValueError`` unless ``seed`` is an int that torch takes."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{function}: seed must be an int, got {seed!r:.80}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{function}: seed must fit into 64 bits, got {seed!r:.80}")


def checked_pattern(function: str, pattern: str | Pattern) -> Pattern:
    """The parsed pattern; errors as of `parse_pattern`."""
    try:
        return parse_pattern(pattern)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("parse_pattern:", f"{function}:", 1)) from None


def checked_sparsities(
    function: str, sparsity: float | Mapping[Target, float], pattern: Pattern
) -> float | dict[Target, float]:
    """One sparsity, or target → sparsity, as floats.

    Raises:
        TypeError, ValueError: a value outside [0, 1), not the one that an N:M pattern has, or a key that is no target.
    """
    if not isinstance(sparsity, Mapping):
        return checked_sparsity(function, "sparsity", sparsity, pattern)
    if not sparsity:
        raise ValueError(f"{function}: sparsity is an empty mapping; give a number, or at least one name")
    target_tuple(function, "sparsity", tuple(sparsity))
    return {
        target: checked_sparsity(function, f"sparsity[{_text(target)!r}]", value, pattern)
        for target, value in sparsity.items()
    }


def checked_sparsity(function: str, name: str, value: object, pattern: Pattern) -> float:
    """``value`` as a float in [0, 1) that ``pattern`` can have."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}: {name} must be a number in [0, 1), got {value!r:.80}")
    value = float(value)
    if not math.isfinite(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{function}: {name} must lie in [0, 1) (the fraction that is pruned), got {value!r}")
    fixed = pattern.fixed_sparsity
    if fixed is not None and value != 0.0 and abs(value - fixed) > 0.005:
        raise ValueError(
            f"{function}: pattern {str(pattern)!r} always has sparsity {fixed:.4g}, {name} is {value!r}; pass "
            f"{fixed:.4g}, or 0 for a dense layer"
        )
    return value


def config_json(config: Any) -> dict[str, Any]:
    """The fields of a configuration as a plain dict for JSON; classes become ``"module:qualname"``."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name in ("targets", "ignore"):
        if values[name] is not None:
            values[name] = [_text(target) for target in values[name]]
    if isinstance(values["sparsity"], Mapping):
        values["sparsity"] = {_text(target): value for target, value in values["sparsity"].items()}
    return values


def _text(target: Target) -> str:
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
