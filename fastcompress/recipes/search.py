"""Staying within a drop of the score: layers are relaxed one by one, those that cost most first.

Precision goes first, as taking it back needs no training: each layer's rounding is switched off alone to see what it
costs. Then sparsity: layers get half of their pruned weights' place back, in the order of what pruning each alone
costs the dense model, with an epoch of training after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.pruning import mask_of, masked, prune, pruning_of, relax_mask
from fastcompress.quantization import fake_quantized, set_fake_quant
from fastcompress.quantization.fake_layer import take_off
from fastcompress.quantization.fixed import scheme_of

from .checkpoint import Checkpoints
from .history import History
from .loop import Settings, evaluate, run_phase
from .optimizers import OptimizerSource
from .progress import Progress
from .recipe import Phase
from .result import CompressionResult, GivenUp
from .session import Session
from .stages import Distillation, Pruning, Stage

__all__ = ["Retraining", "within_budget"]

#: Factor of the learning rate while a relaxed model trains on.
_RATE = 0.1

#: Sparsities below this are not worth a mask.
_LEAST_SPARSITY = 0.3


@dataclass(frozen=True)
class Retraining:
    """What a relaxed model is trained on with."""

    stages: tuple[Stage, ...]
    settings: Settings
    source: OptimizerSource
    batch: Any
    progress: bool | None
    checkpoints: Checkpoints

    def epoch(self, model: nn.Module, dense: nn.Module, history: History, number: int, change: str) -> None:
        """One more epoch, in place, or what is left of it; ``number`` counts them from 0, ``change`` says what for.

        A run that goes on may find other layers faster, and relax in another order: checkpoints are of one change.
        """
        settings = self.settings
        start = settings.epochs + number
        teaching = tuple(stage for stage in self.stages if isinstance(stage, Distillation))
        steps = settings.data.steps_per_epoch
        phase = Phase(start, start + 1, teaching)
        session = Session(model, phase, steps, start + 1, self.batch, forward_fn=settings.forward_fn, dense=dense)
        optimizer = self.source.make(session.parameters(), session.model)
        again = replace(settings, epochs=start + 1, rate=lambda progress: _RATE)
        checkpoints = self.checkpoints.inside(f"relaxed-{number}-{change}")
        with Progress(start + 1, self.progress) as bar:
            run_phase(session, 0, optimizer, again, checkpoints, history, bar, checkpoints.load())
        session.finish()


def within_budget(
    result: CompressionResult, max_drop: float, retraining: Retraining, finished: Callable[[nn.Module], nn.Module]
) -> CompressionResult:
    """The result, relaxed until its score is within ``max_drop`` of the dense one, or nothing is left to relax.

    Args:
        result: with both scores; its trained model is changed.
        max_drop: in the score's unit.
        retraining: how to train on.
        finished: makes the finished model from a trained one.
    """
    number = 0
    for name, what in _order(result, retraining):
        if cast(float, result.drop) <= max_drop:
            return result
        layer = result.trained.get_submodule(name)
        if what != "sparsity":
            before, after = what, "float"
            take_off(layer)
        else:
            old = masked_fraction(layer)
            new = _relax(result, name, retraining.stages)
            before, after = f"{old:.0%}", f"{new:.0%}"
            change = f"{name}-{before}-{after}".replace("%", "")
            retraining.epoch(result.trained, result.dense, result.history, number, change)
            number += 1
        model = finished(result.trained)
        score = evaluate(model, cast(Any, retraining.settings.eval_fn))
        given = GivenUp(name, what, before, after, score)
        result = replace(result, model=model, score=score, given_up=(*result.given_up, given))
    return result


def masked_fraction(layer: nn.Module) -> float:
    """Pruned fraction of a layer's weight; zeros that rounding makes do not count."""
    mask = mask_of(layer)
    return 0.0 if mask is None else 1.0 - int(mask.sum()) / mask.numel()


def _order(result: CompressionResult, retraining: Retraining) -> Iterator[tuple[str, str]]:
    """What to relax next: layer and ``"int8"``, ``"int4"`` or ``"sparsity"``; the trained model changes between two."""
    eval_fn = cast(Any, retraining.settings.eval_fn)
    for name in _by_rounding_cost(result.trained, eval_fn):
        yield name, "int8" if scheme_of(result.trained.get_submodule(name)) == "W8A8" else "int4"
    for name in _by_pruning_cost(result, eval_fn):
        while masked_fraction(result.trained.get_submodule(name)) > 0.0:
            yield name, "sparsity"


def _by_rounding_cost(model: nn.Module, eval_fn: Any) -> list[str]:
    """Layers whose rounding costs something, the most expensive first."""
    base, gains = evaluate(model, eval_fn), {}
    for name, layer in fake_quantized(model).items():
        state = {key: value.clone() for key, value in layer.state_dict().items()}
        holder = nn.ModuleList([layer])
        set_fake_quant(holder, "off")
        gains[name] = evaluate(model, eval_fn) - base
        layer.load_state_dict(state)
    return sorted((name for name, gain in gains.items() if gain > 0.0), key=lambda name: -gains[name])


def _by_pruning_cost(result: CompressionResult, eval_fn: Any) -> list[str]:
    """Masked layers, those first whose pruning alone costs the dense model most."""
    record, costs = pruning_of(result.trained), {}
    patterns = {decision.name: decision.pattern for decision in record or ()}
    for name, layer in masked(result.trained).items():
        sparsity = masked_fraction(layer)
        if sparsity > 0.0 and name in dict(result.dense.named_modules()):
            alone = prune(result.dense, sparsity, patterns.get(name) or "unstructured", targets=[name], progress=False)
            costs[name] = evaluate(result.dense, eval_fn) - evaluate(alone, eval_fn)
    return sorted(costs, key=lambda name: -costs[name])


def _relax(result: CompressionResult, name: str, stages: tuple[Stage, ...]) -> float:
    """Give half of a layer's sparsity back, judged by the dense model's weights; returns what it is then."""
    layer = result.trained.get_submodule(name)
    sparsity = masked_fraction(layer)
    pattern = next(
        (d.pattern for d in pruning_of(result.trained) or () if d.name == name),
        next(stage.pattern for stage in stages if isinstance(stage, Pruning)),
    )
    wanted = 1.0 - 2.0 * (1.0 - sparsity)
    if wanted < _LEAST_SPARSITY or ":" in str(pattern):
        wanted = 0.0
    dense = cast(Tensor, result.dense.get_submodule(name).weight).detach()
    own = cast(Tensor, layer.weight)
    scores = dense.abs() if dense.shape == own.shape else torch.zeros_like(own)
    relax_mask(layer, str(pattern), wanted, scores.to(own.device))
    return masked_fraction(layer)
