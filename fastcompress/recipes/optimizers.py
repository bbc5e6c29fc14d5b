"""The optimizer and the learning rate of a run."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
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


def set_rate(optimizer: torch.optim.Optimizer, factor: Any) -> None:
    """Set every group's learning rate to ``factor`` times what it started with.

    Raises:
        ValueError: the factor is no finite number, zero or more.
    """
    if isinstance(factor, bool) or not isinstance(factor, Real) or not 0.0 <= float(factor) < math.inf:
        raise ValueError(
            f"compress: learning_rate must give a factor that is a finite number, zero or more, got {factor!r:.80}"
        )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * float(factor)


class OptimizerSource:
    """Makes the optimizer of each phase.

    Args:
        given: a factory; an optimizer on ``model``'s parameters, whose kind and groups are used; or None for AdamW with
            learning rate 1e-3, and weight decay 0.01 on matrices.
        model: what the caller has; parameters of the copies that are trained are known by their names in it.

    Raises:
        TypeError, ValueError: none of these, or an optimizer of something else.
    """

    def __init__(self, given: torch.optim.Optimizer | OptimizerFactory | None, model: nn.Module) -> None:
        if given is not None and not isinstance(given, torch.optim.Optimizer) and not callable(given):
            raise TypeError(
                "compress: optimizer must be a function that makes one from a list of parameters, an optimizer, or "
                f"None, got {given!r:.80}"
            )
        self._given = given
        self._group: dict[str, int | None] = {}
        if isinstance(given, torch.optim.Optimizer):
            place = {id(p): i for i, group in enumerate(given.param_groups) for p in group["params"]}
            self._group = {_plain(name): place.get(id(p)) for name, p in model.named_parameters()}
            if all(index is None for index in self._group.values()):
                raise ValueError(
                    "compress: the optimizer holds none of the model's parameters; pass one on model.parameters(), or "
                    "a function that makes one, such as lambda p: torch.optim.SGD(p, lr=0.1)"
                )

    def make(self, parameters: Iterable[nn.Parameter], model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of these parameters.

        Args:
            parameters: what is to be trained, the model's and others.
            model: a copy of the caller's, with stages on it or not.

        Raises:
            TypeError: the factory made something else.
            ValueError: there is nothing to train, or the factory's optimizer holds other parameters.
        """
        listed = list(parameters)
        if not listed:
            raise ValueError("compress: no parameter of the model requires a gradient, so there is nothing to train")
        if self._given is None:
            return _adamw(listed)
        if isinstance(self._given, torch.optim.Optimizer):
            return self._like(self._given, listed, model)
        made = self._given(listed)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"compress: optimizer made a {type(made).__name__}, not a torch.optim.Optimizer")
        known = {id(parameter) for parameter in listed}
        if any(id(p) not in known for group in made.param_groups for p in group["params"]):
            raise ValueError(
                "compress: optimizer made one of parameters that it was not given; compress trains a copy, so use the "
                "list that the function gets: lambda p: torch.optim.SGD(p, lr=0.1)"
            )
        return made

    def _like(
        self, given: torch.optim.Optimizer, parameters: list[nn.Parameter], model: nn.Module
    ) -> torch.optim.Optimizer:
        options = [{k: v for k, v in group.items() if k not in _PER_OBJECT} for group in given.param_groups]
        names = {id(p): _plain(name) for name, p in model.named_parameters()}
        groups: list[dict[str, Any]] = [{**each, "params": []} for each in options]
        fresh: list[nn.Parameter] = []  # what the recipe adds: learned scales, projections
        for parameter in parameters:
            name = names.get(id(parameter))
            if name is None or name not in self._group:
                fresh.append(parameter)
                continue
            index = self._group[name]
            if index is not None:  # the caller does not train the others either
                groups[index]["params"].append(parameter)
        undecayed = {"weight_decay": 0.0} if "weight_decay" in options[0] else {}
        groups.append({**options[0], "params": [p for p in fresh if p.dim() >= 2]})
        groups.append({**options[0], "params": [p for p in fresh if p.dim() < 2], **undecayed})
        kind: Any = type(given)
        made: torch.optim.Optimizer = kind([g for g in groups if g["params"]], **_arguments(kind, given.defaults))
        return made

    def to_json(self, model: nn.Module) -> dict[str, Any]:
        """Kind and settings, to recognise changed ones; ``model`` as for `make`."""
        made = self.make((p for p in model.parameters() if p.requires_grad), model)
        groups = [{k: _value(v) for k, v in group.items() if k not in _PER_OBJECT} for group in made.param_groups]
        return {
            "kind": type(made).__name__,
            "groups": [{**each, "params": len(g["params"])} for each, g in zip(groups, made.param_groups, strict=True)],
        }


#: Keys of a parameter group that belong to one optimizer's parameters and not to its settings.
_PER_OBJECT = ("params", "param_names")

_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


def _plain(name: str) -> str:
    """A parameter's name as it is without parametrizations."""
    return _PARAMETRIZED.sub(r"\1", name)


def _arguments(kind: type, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an optimizer's defaults that it can be made with; AdamW keeps one of its base class's."""
    accepted = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return dict(defaults)
    return {name: value for name, value in defaults.items() if name in accepted}


def _value(value: Any) -> Any:
    """A setting, so that equal ones are equal in JSON and in another process."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value if isinstance(value, (bool, int, float, str, tuple, type(None))) else type(value).__name__


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)
