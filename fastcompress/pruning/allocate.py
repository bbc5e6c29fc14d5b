"""Per-layer sparsities under a budget of quality, size or measured time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .curves import SensitivityCurves

__all__ = ["allocate"]


@dataclass(frozen=True)
class _Level:
    sparsity: float
    drop: float
    cost: float


@dataclass(frozen=True)
class _Budget:
    drop: float
    cost: float


def allocate(
    curves: SensitivityCurves,
    *,
    max_drop: float | None = None,
    size_ratio: float | None = None,
    latency: Mapping[tuple[str, float], float] | None = None,
    target_seconds: float | None = None,
    pattern: str | None = None,
) -> dict[str, float]:
    """Choose each layer's sparsity: step by step the one that loses least quality for what it saves.

    The model's drop is estimated by the sum of the layers' own drops.

    Args:
        curves: from `sensitivity`.
        max_drop: largest estimated drop of the score; alone, as much as possible is saved within it.
        size_ratio: aim at this size of the layers' weights, over the dense one, in (0, 1]. Indices are not counted.
        latency: (layer, sparsity) → measured seconds, for every point of the curves and for each layer at 0.0 (dense).
            Savings are then seconds, not bytes.
        target_seconds: aim at this sum over the layers; needs ``latency``.
        pattern: which curves, where there are several.

    Returns:
        Name → sparsity (0.0 stays dense), for the ``sparsity`` argument of `prune`.

    Raises:
        ValueError: a wrong argument, or a budget that cannot be met; the message says how close it came.

    Example:
        >>> allocate(curves, max_drop=0.01)
        {'fc1': 0.9, 'fc2': 0.7, 'head': 0.0}
    """
    _check(curves, max_drop, size_ratio, latency, target_seconds)
    levels = _levels(curves, _pattern(curves, pattern), latency)
    dense = sum(options[0].cost for options in levels.values())
    if target_seconds is not None:
        cost = float(target_seconds)
    else:
        cost = -math.inf if size_ratio is None else dense * size_ratio
    budget = _Budget(math.inf if max_drop is None else float(max_drop), cost)
    chosen = _greedy(levels, budget)
    total, drop = sum(level.cost for level in chosen.values()), sum(level.drop for level in chosen.values())
    if math.isfinite(cost) and total > cost * (1 + 1e-12):
        within = "" if max_drop is None else f" within max_drop={max_drop}"
        if latency is None:
            aim, reached = f"size_ratio={size_ratio}", f"size ratio {total / dense:.4g}"
        else:
            aim, reached = f"target_seconds={target_seconds}", f"{total:.4g} s of {dense:.4g} s dense"
        raise ValueError(
            f"allocate: {aim} cannot be met{within}: the closest is {reached}, with an estimated drop of {drop:.4g}; "
            "allow more, or measure higher sparsities"
        )
    return {layer: level.sparsity for layer, level in chosen.items()}


def _greedy(levels: Mapping[str, list[_Level]], budget: _Budget) -> dict[str, _Level]:
    """Take the cheapest step (quality lost per cost saved) until the cost is met or no step fits."""
    chosen = {layer: options[0] for layer, options in levels.items()}
    total, drop = sum(level.cost for level in chosen.values()), 0.0
    while total > budget.cost:
        best: tuple[float, float, str, _Level] | None = None
        for layer, options in levels.items():
            now = chosen[layer]
            for option in options:
                saved, lost = now.cost - option.cost, option.drop - now.drop
                if saved > 0 and option.sparsity > now.sparsity and drop + lost <= budget.drop + 1e-12:
                    # Among equal prices the larger saving.
                    step = (lost / saved, -saved, layer, option)
                    if best is None or step[:3] < best[:3]:
                        best = step
        if best is None:
            break
        _, negative_saving, layer, option = best
        total, drop = total + negative_saving, drop + option.drop - chosen[layer].drop
        chosen[layer] = option
    return chosen


def _levels(
    curves: SensitivityCurves, pattern: str, latency: Mapping[tuple[str, float], float] | None
) -> dict[str, list[_Level]]:
    """Layer → its levels, dense first."""
    result: dict[str, list[_Level]] = {}
    missing: list[tuple[str, float]] = []
    for point in sorted((p for p in curves.points if p.pattern == pattern), key=lambda p: p.sparsity):
        if not math.isfinite(point.value):
            raise ValueError(f"allocate: the curve of {point.layer!r} has the value {point.value} at {point.sparsity}")
        size = float(point.weight_elems * point.elem_bytes)
        is_first = point.layer not in result
        options = result.setdefault(point.layer, [])
        for sparsity in (0.0, point.sparsity) if is_first else (point.sparsity,):
            if latency is None:
                cost = size * (1.0 - sparsity)
            elif (point.layer, sparsity) in latency:
                cost = _seconds(latency, point.layer, sparsity)
            else:
                missing.append((point.layer, sparsity))
                continue
            # A layer that seems to gain from pruning is noise of the evaluation, not a budget for others.
            drop = 0.0 if sparsity == 0.0 else max(0.0, curves.baseline - point.value)
            options.append(_Level(sparsity, drop, cost))
    if missing:
        raise ValueError(
            f"allocate: latency has no seconds for {missing[0]!r} ({len(missing)} missing); measure every layer at "
            "every sparsity of the curves and at 0.0"
        )
    return {layer: result[layer] for layer in curves.layers if layer in result}


def _seconds(latency: Mapping[tuple[str, float], float], layer: str, sparsity: float) -> float:
    value: object = latency[layer, sparsity]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(
            f"allocate: latency of {(layer, sparsity)!r} must be a finite number of seconds, at least 0, got "
            f"{value!r:.80}"
        )
    return float(value)


def _pattern(curves: SensitivityCurves, pattern: str | None) -> str:
    known = curves.patterns
    listed = ", ".join(repr(name) for name in known)
    if pattern is None:
        if len(known) > 1:
            raise ValueError(f"allocate: the curves have several patterns, {listed}; choose one with pattern=")
        return known[0]
    if pattern not in known:
        raise ValueError(f"allocate: pattern {pattern!r:.80} has no curve; there are {listed}")
    return pattern


def _check(
    curves: object,
    max_drop: object,
    size_ratio: object,
    latency: object,
    target_seconds: object,
) -> None:
    if not isinstance(curves, SensitivityCurves):
        raise TypeError(f"allocate: curves must be SensitivityCurves from sensitivity(), got {type(curves).__name__}")
    if not curves.points:
        raise ValueError("allocate: the curves have no points: no layer could be pruned, see curves.skipped")
    for name, value in (("max_drop", max_drop), ("size_ratio", size_ratio), ("target_seconds", target_seconds)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"allocate: {name} must be a number of at least 0, got {value!r:.80}")
    if isinstance(size_ratio, (int, float)) and not 0 < size_ratio <= 1:
        raise ValueError(f"allocate: size_ratio must lie in (0, 1], got {size_ratio!r}")
    if latency is not None and not isinstance(latency, Mapping):
        raise TypeError(f"allocate: latency must map (layer, sparsity) to seconds, got {type(latency).__name__}")
    if target_seconds is not None and latency is None:
        raise ValueError("allocate: target_seconds needs latency, a mapping (layer, sparsity) → measured seconds")
    if size_ratio is not None and latency is not None:
        raise ValueError("allocate: size_ratio counts bytes and latency seconds; use target_seconds with latency")
    if max_drop is None and size_ratio is None and target_seconds is None:
        raise ValueError("allocate: give a budget: max_drop, size_ratio, or latency with target_seconds")
