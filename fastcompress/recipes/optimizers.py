"""The optimizer and the learning rate of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["LEARNING_RATES", "LearningRate", "OptimizerFactory", "OptimizerSource", "learning_rate_factor", "set_rate"]

#: ``factory(parameters)`` makes an optimizer; it gets a list of parameters.
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

#: Progress of the run, from 0 to 1 → factor of the learning rate.
LearningRate = Callable[[float], float]

_WARMUP = 0.05
_AFTER_WARMUP = 1.0 - _WARMUP


def _cosine(progress: float) -> float:
    if progress < _WARMUP:
        return progress / _WARMUP
    return 0.5 * (1.0 + math.cos(math.pi * (progress - _WARMUP) / _AFTER_WARMUP))


#: Name → factor of the learning rate: ``"cosine"`` rises for the first twentieth of the run and falls to zero
#: (Loshchilov & Hutter, arXiv 1608.03983, without restarts).
LEARNING_RATES: Mapping[str, LearningRate] = {"constant": lambda progress: 1.0, "cosine": _cosine}


def learning_rate_factor(given: str | LearningRate) -> LearningRate:
    """The factor's function.

    Raises:
        TypeError, ValueError: an unknown name, or neither a name nor a function.
    """
    if isinstance(given, str):
        if given not in LEARNING_RATES:
            raise ValueError(f"compress: learning_rate {given!r:.80} is unknown; valid are {', '.join(LEARNING_RATES)}")
        return LEARNING_RATES[given]
    if not callable(given):
        raise TypeError(f"compress: learning_rate must be a name or a function of the progress, got {given!r:.80}")
    return given


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times what it started with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


class OptimizerSource:
    """Makes the optimizer of each phase.

    Args:
        given: a factory; an optimizer on ``model``'s parameters, whose kind and groups are used; or None for AdamW with
            learning rate 1e-3, and weight decay 0.01 on matrices.
        model: what the caller has.
        work: the copy of it that is trained; its parameters are in the same order.
    """

    def __init__(
        self, given: torch.optim.Optimizer | OptimizerFactory | None, model: nn.Module, work: nn.Module
    ) -> None:
        if given is not None and not isinstance(given, torch.optim.Optimizer) and not callable(given):
            raise TypeError(
                "compress: optimizer must be a function that makes one from a list of parameters, an optimizer, or "
                f"None, got {given!r:.80}"
            )
        self._given = given
        self._group: dict[int, int] = {}
        if isinstance(given, torch.optim.Optimizer):
            place = {id(p): i for i, group in enumerate(given.param_groups) for p in group["params"]}
            pairs = zip(model.parameters(), work.parameters(), strict=True)
            self._group = {id(own): place[id(theirs)] for theirs, own in pairs if id(theirs) in place}
            if not self._group:
                raise ValueError(
                    "compress: the optimizer holds none of the model's parameters; pass one on model.parameters(), or "
                    "a function that makes one, such as lambda p: torch.optim.SGD(p, lr=0.1)"
                )

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer of these parameters.

        Raises:
            TypeError: the factory made something else.
        """
        listed = list(parameters)
        if self._given is None:
            return _adamw(listed)
        if isinstance(self._given, torch.optim.Optimizer):
            return self._like(self._given, listed)
        made = self._given(listed)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"compress: optimizer made a {type(made).__name__}, not a torch.optim.Optimizer")
        return made

    def _like(self, given: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        options = [{k: v for k, v in group.items() if k != "params"} for group in given.param_groups]
        groups = [
            {**each, "params": [p for p in parameters if self._group.get(id(p)) == i]} for i, each in enumerate(options)
        ]
        known = set(self._group)
        fresh = [p for p in parameters if id(p) not in known]
        # What the recipe adds (learned scales, projections) or has made smaller (after channels were removed).
        small = [p for p in fresh if p.dim() < 2]
        groups += [{**options[0], "params": [p for p in fresh if p.dim() >= 2]}]
        groups += [{**options[0], "params": small, **({"weight_decay": 0.0} if "weight_decay" in options[0] else {})}]
        kind: Any = type(given)
        made: torch.optim.Optimizer = kind([group for group in groups if group["params"]], **given.defaults)
        return made

    def to_json(self) -> dict[str, Any]:
        """Kind and settings, to recognise a changed one."""
        probe = (
            self._given
            if isinstance(self._given, torch.optim.Optimizer)
            else self.make([nn.Parameter(torch.zeros(1, 1))])
        )
        return {"kind": type(probe).__name__, "defaults": {k: str(v) for k, v in probe.defaults.items()}}


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)
