"""How much a model's quality suffers when one layer at a time is pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fastcompress.models.calibrate import ForwardFn, track
from fastcompress.models.copying import copied
from fastcompress.models.targets import Target

from .config import PruneConfig
from .curves import SensitivityCurves, SensitivityPoint
from .evidence import Evidence, evidence
from .layers import PrunableLayer
from .mask import apply_mask, lift_mask, mask_module
from .patterns import Pattern, parse_pattern
from .plan import select
from .record import PruneDecision
from .solve import Solved, solve
from .source import LossFn, make_source

__all__ = ["SensitivityCurves", "SensitivityPoint", "sensitivity"]


def sensitivity(
    model: nn.Module,
    eval_fn: Callable[[nn.Module], float],
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9),
    patterns: Sequence[str] = ("16x4",),
    *,
    criterion: str = "magnitude",
    calibration_data: Any = None,
    targets: Iterable[Target] | Target | None = None,
    ignore: Iterable[Target] | Target | None = None,
    loss_fn: LossFn | None = None,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> SensitivityCurves:
    """Prune each layer alone to each sparsity and pattern, and evaluate the model every time.

    Args:
        model: stays unchanged; a copy is pruned.
        eval_fn: ``eval_fn(model)`` → quality, a finite number, higher is better (negate a loss).
        sparsities: in (0, 1). An N:M pattern is evaluated once, at its own sparsity.
        patterns: pattern names, see `prune`; layers that a pattern does not fit are in ``curves.skipped``.
        criterion, calibration_data, targets, ignore, loss_fn, forward_fn, seed, progress: as in `prune`.

    Returns:
        The curves, for `allocate`, ``.table()`` and ``.plot(path)``.

    Raises:
        TypeError, ValueError: a wrong argument, or ``eval_fn`` returned no finite number.

    Example:
        >>> curves = fc.sensitivity(model, accuracy, patterns=("16x4", "4x4"))
        >>> print(curves.table())
        >>> fc.prune(model, fc.allocate(curves, max_drop=0.01), "16x4")

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (arXiv 1506.02626),
    section 4 (sensitivity of each layer).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sensitivity: model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(eval_fn):
        raise TypeError(f"sensitivity: eval_fn must be callable as eval_fn(model), got {eval_fn!r:.80}")
    parsed = _patterns(patterns)
    levels = _levels(sparsities)
    source = make_source("sensitivity", criterion, calibration_data, forward_fn, loss_fn, seed, progress)
    work = copied(model, "sensitivity")
    configs = {
        pattern: PruneConfig(
            levels[0] if pattern.fixed_sparsity is None else pattern.fixed_sparsity,
            str(pattern),
            criterion,
            targets=targets,  # type: ignore[arg-type]  # one target or any iterable of them: checked and made a tuple
            ignore=() if ignore is None else ignore,  # type: ignore[arg-type]
            seed=seed,
        )
        for pattern in parsed
    }
    skipped: dict[str, dict[str, str]] = {}
    fitting: dict[str, list[Pattern]] = {}
    layers: dict[str, PrunableLayer] = {}
    for pattern, config in configs.items():
        decisions: dict[str, PruneDecision] = {}
        for layer in select(work, config, decisions)[0]:
            layers[layer.name] = layer
            fitting.setdefault(layer.name, []).append(pattern)
        skipped[str(pattern)] = {d.name: d.reason for d in decisions.values() if d.action == "skipped"}
    order = [name for name, _ in work.named_modules(remove_duplicate=False) if name in layers]
    baseline = _evaluated(eval_fn, work, "the unpruned model")
    points: list[SensitivityPoint] = []
    found = evidence(work, [layers[name] for name in order], criterion, source)
    for layer, known in track(found, "pruning layers", progress):
        if known.problem is not None:
            for pattern in fitting[layer.name]:
                skipped[str(pattern)][layer.name] = known.problem
            continue
        for pattern in fitting[layer.name]:
            fixed = pattern.fixed_sparsity
            for sparsity in levels if fixed is None else (fixed,):
                value = _point(work, layer, known, pattern, sparsity, eval_fn)
                if isinstance(value, str):
                    skipped[str(pattern)][layer.name] = value
                    break
                points.append(
                    SensitivityPoint(
                        layer.name, str(pattern), sparsity, value, layer.weight.numel(), layer.weight.element_size()
                    )
                )
    return SensitivityCurves(baseline, tuple(points), criterion, skipped)


def _point(
    model: nn.Module,
    layer: PrunableLayer,
    known: Evidence,
    pattern: Pattern,
    sparsity: float,
    eval_fn: Callable[[nn.Module], float],
) -> float | str:
    """The quality with only this layer pruned, or why it cannot be; the layer is put back."""
    try:
        solved = solve(layer, known, pattern, sparsity)
    except ValueError as error:
        return str(error)
    undo = _put(layer, solved)
    try:
        return _evaluated(eval_fn, model, f"layer {layer.name!r} at sparsity {sparsity}, pattern {str(pattern)!r}")
    finally:
        undo()


def _put(layer: PrunableLayer, solved: Solved) -> Callable[[], None]:
    """Prune the layer; the result undoes it."""
    parameter = layer.parameter
    saved = None if solved.weight is None else parameter.detach().clone()
    had = [None if (old := mask_module(module)) is None else old.mask for module in layer.modules]
    if solved.weight is not None:
        with torch.no_grad():
            parameter.copy_(solved.weight)
    for module in layer.modules:
        apply_mask(module, solved.mask)

    def undo() -> None:
        for module, mask in zip(layer.modules, had, strict=True):
            current = mask_module(module)
            if mask is None or current is None:
                lift_mask(module)
            else:
                current.mask = mask
        if saved is not None:
            with torch.no_grad():
                parameter.copy_(saved)

    return undo


def _evaluated(eval_fn: Callable[[nn.Module], float], model: nn.Module, what: str) -> float:
    value: Any = eval_fn(model)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"sensitivity: eval_fn returned {value!r:.80} for {what}; it must return a finite number, higher is better"
        )
    return number


def _patterns(patterns: object) -> list[Pattern]:
    if isinstance(patterns, (str, Pattern)):
        patterns = (patterns,)
    if not isinstance(patterns, Iterable):
        raise TypeError(f"sensitivity: patterns must be pattern names such as ('16x4',), got {patterns!r:.80}")
    try:
        parsed = list(dict.fromkeys(parse_pattern(pattern) for pattern in patterns))
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("parse_pattern:", "sensitivity:", 1)) from None
    if not parsed:
        raise ValueError("sensitivity: patterns is empty; give at least one, such as '16x4'")
    if any(pattern.kind == "channel" for pattern in parsed):
        raise ValueError("sensitivity: pattern 'channel' removes whole channels and has no curve; see prune_channels")
    return parsed


def _levels(sparsities: object) -> list[float]:
    values: list[Any] = list(sparsities) if isinstance(sparsities, Iterable) else [sparsities]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ValueError(f"sensitivity: sparsities must lie in (0, 1), got {value!r:.80}")
    if not values:
        raise ValueError("sensitivity: sparsities is empty; give at least one, such as 0.5")
    return sorted({float(value) for value in values})
