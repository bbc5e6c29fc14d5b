"""Structured pruning: whole channels go and a smaller dense model remains (optional package torch-pruning)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.choices import check_choice
from fastcompress.models.copying import copied
from fastcompress.models.targets import Target, matched, target_tuple
from fastcompress.nn.parametrization import WeightTransform, weight_steps

from .channel_graph import accumulate_gradients, shrink, torch_pruning
from .channel_run import check_runs, check_ties, count_macs
from .commit import log_skipped, merged
from .config import SCOPES
from .layers import WORDING, find_layers
from .mask import foreign_parametrizations, masked
from .record import PRUNING_ATTRIBUTE, PruneDecision, pruning_of
from .source import LossFn, make_source

__all__ = ["CHANNEL_CRITERIA", "channel_decisions", "prune_channels"]

CHANNEL_CRITERIA: tuple[str, ...] = ("magnitude", "taylor", "random")

#: Bisections of the ratio when a cost is aimed at: 2^-7 is finer than rounding to 16 channels.
_BISECTIONS = 7


def prune_channels(
    model: nn.Module,
    example_inputs: Any,
    pruning_ratio: float = 0.5,
    *,
    cost_ratio: float | None = None,
    cost: Callable[[nn.Module], float] | None = None,
    round_to: int = 16,
    criterion: str = "magnitude",
    scope: str = "local",
    ignore: Iterable[Target] | Target | None = None,
    calibration_data: Any = None,
    loss_fn: LossFn | None = None,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """Remove a model's least important channels, together with everything that depends on them.

    Args:
        model: a model that torch-pruning can follow; it is run on ``example_inputs`` and stays unchanged.
        example_inputs: one batch: a tensor is ``model(x)``, a dict ``model(**x)``, a tuple or list its first element.
        pruning_ratio: fraction of each layer's channels, in [0, 1); with ``cost_ratio`` the largest one that is tried.
        cost_ratio: aim at this fraction of the dense model's cost instead, in (0, 1].
        cost: ``cost(model)`` → what is aimed at, such as measured seconds; multiply-accumulates by default.
        round_to: layers keep a multiple of this many channels, at least one multiple.
        criterion: magnitude, taylor (needs ``calibration_data``) or random.
        scope: ``"local"``, the same ratio in every layer, or ``"global"``, one ranking.
        ignore: layers whose outputs stay: names, ``"re:…"`` patterns, classes, containers. Those that make the model's
            outputs always do.
        calibration_data, loss_fn, forward_fn, seed: as in `prune`.

    Returns:
        A smaller dense copy, in the training mode the model had, with every layer's sizes in its record.

    Raises:
        ImportError: torch-pruning is not installed.
        TypeError, ValueError: a wrong argument, a cost that cannot be reached, or a model that does not run any more,
            or no longer shares its weights, when channels are missing; the message names the module.
        RuntimeError: called under ``torch.inference_mode()``.

    Example:
        >>> small = prune_channels(resnet, torch.randn(1, 3, 224, 224), cost_ratio=0.5, pruning_ratio=0.8)

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900), section 3.
    """
    _check(model, pruning_ratio, cost_ratio, round_to, scope)
    check_choice("prune_channels", "criterion", criterion, CHANNEL_CRITERIA)
    source = make_source("prune_channels", criterion, calibration_data, forward_fn, loss_fn, seed, progress)
    torch_pruning()
    entries = () if ignore is None else target_tuple("prune_channels", "ignore", ignore)
    layers = find_layers(model)
    fixed = [name for entry in entries for name in matched(model, layers, entry, "ignore", WORDING)]
    start = copied(model, "prune_channels")
    if criterion == "taylor":
        accumulate_gradients(start, source)

    def shrunk(ratio: float) -> nn.Module:
        result = copied(start, "prune_channels")
        for old, new in zip(start.parameters(), result.parameters(), strict=True):
            new.grad = None if old.grad is None else old.grad.clone()
        shrink(result, example_inputs, ratio, round_to, criterion, scope, fixed, source)
        for parameter in result.parameters():
            parameter.grad = None
        check_runs(result, start, example_inputs, forward_fn)
        check_ties(result, start)
        return result

    if cost_ratio is None:
        result = shrunk(pruning_ratio)
    else:
        measure = cost or (lambda m: float(count_macs(m, example_inputs, forward_fn)))
        result = _aimed(shrunk, measure, start, cost_ratio, pruning_ratio)
    decisions = list(channel_decisions(model, result, pruning_ratio, fixed))
    config = {"pattern": "channel", "sparsity": pruning_ratio, "cost_ratio": cost_ratio, "round_to": round_to}
    config |= {"criterion": criterion, "scope": scope, "ignore": [str(entry) for entry in entries], "seed": seed}
    setattr(result, PRUNING_ATTRIBUTE, merged(result, decisions, config, pruning_of(model)))
    log_skipped("prune_channels", decisions)
    return result


def _check(model: object, pruning_ratio: object, cost_ratio: object, round_to: object, scope: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune_channels: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(pruning_ratio, bool) or not isinstance(pruning_ratio, (int, float)) or not 0 <= pruning_ratio < 1:
        raise ValueError(
            f"prune_channels: pruning_ratio must lie in [0, 1) (the fraction that is removed), got {pruning_ratio!r}"
        )
    if cost_ratio is not None and (
        isinstance(cost_ratio, bool) or not isinstance(cost_ratio, (int, float)) or not 0 < cost_ratio <= 1
    ):
        raise ValueError(
            f"prune_channels: cost_ratio must lie in (0, 1] (the fraction of the cost that stays), got {cost_ratio!r}"
        )
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"prune_channels: round_to must be a positive int, got {round_to!r}")
    if scope not in SCOPES:
        raise ValueError(f"prune_channels: scope {scope!r:.80} is unknown; valid are 'local', 'global'")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "prune_channels: layers that depend on each other are found by autograd, which torch.inference_mode() "
            "switches off; call it outside"
        )
    carrying = list(masked(model))
    if carrying:
        raise ValueError(
            f"prune_channels: layer {carrying[0]!r} carries a mask, which cannot lose channels; prune channels first, "
            "or call remove_mask on every masked layer"
        )
    for candidate in find_layers(model):
        others = foreign_parametrizations(candidate.module)
        others += [type(step).__name__ for step in weight_steps(candidate.module) if isinstance(step, WeightTransform)]
        what = f"has the parametrization {', '.join(others)}; remove it first" if others else ""
        if any(is_lazy(parameter) for parameter in candidate.module.parameters()):
            what = "is lazy; run the model once first"
        if what:
            raise ValueError(f"prune_channels: layer {candidate.name!r} ({candidate.kind}) {what}")


def _aimed(
    shrunk: Callable[[float], nn.Module],
    measure: Callable[[nn.Module], float],
    dense: nn.Module,
    cost_ratio: float,
    largest: float,
) -> nn.Module:
    """The model with the smallest ratio found whose cost is at most ``cost_ratio`` of the dense one's."""

    def measured(model: nn.Module) -> float:
        value: object = measure(model)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(
                f"prune_channels: cost(model) must return a finite number of at least 0, got {value!r:.80}"
            )
        return float(value)

    budget = measured(dense) * cost_ratio
    low, high = 0.0, largest
    best = shrunk(largest)
    reached = measured(best)
    if reached > budget:
        raise ValueError(
            f"prune_channels: cost_ratio={cost_ratio} cannot be reached: pruning_ratio={largest} gives "
            f"{cost_ratio * reached / budget:.3f}; allow a larger pruning_ratio or a smaller round_to, or "
            "ignore fewer layers"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        trial = shrunk(middle)
        if measured(trial) <= budget:
            best, high = trial, middle
        else:
            low = middle
    return best


def channel_decisions(model: nn.Module, result: nn.Module, asked: float, fixed: list[str]) -> Iterator[PruneDecision]:
    """What happened to each layer's channels between ``model`` and ``result``."""
    for candidate in find_layers(model):
        name, kind = candidate.name, candidate.kind
        old = cast(Tensor, candidate.module.weight)
        new = cast(Tensor, result.get_submodule(name).weight)
        achieved = 1.0 - new.numel() / max(1, old.numel())
        sizes = f"[{', '.join(map(str, old.shape[:2]))}] → [{', '.join(map(str, new.shape[:2]))}]"
        if achieved > 0:
            yield PruneDecision(name, kind, "pruned", "channel", asked, achieved, None, f"[out, in] {sizes}")
        else:
            reason = "in ignore" if name in fixed else "its channels are too few to round, or the model's outputs"
            yield PruneDecision(name, kind, "kept", asked=asked, reason=reason)
