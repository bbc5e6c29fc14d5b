"""The layers of a model that can carry a mask, and the reasons why others cannot."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from fastcompress.models.targets import Candidate, Wording, module_names

from .mask import foreign_parametrizations, mask_leads, mask_of, original_weight, permutation_of
from .patterns import Pattern

__all__ = ["WORDING", "PrunableLayer", "find_layers", "layer_problem", "tie"]

WORDING = Wording("prune", "pruned")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class PrunableLayer:
    """A weight that might be pruned.

    Attributes:
        candidate: the module that owns it, and its names.
        tied: other modules with the same weight parameter; they get the same mask.
    """

    candidate: Candidate
    tied: tuple[Candidate, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Every module that computes with the weight."""
        return (self.candidate.module, *(other.module for other in self.tied))

    @property
    def weight(self) -> Tensor:
        """The weight as the layer uses it now, masked if it already has a mask; detached."""
        return cast(Tensor, self.candidate.module.weight).detach()

    @property
    def parameter(self) -> Tensor:
        """The parameter underneath a mask."""
        return original_weight(self.candidate.module)

    @property
    def mask(self) -> Tensor | None:
        """The mask that it has already."""
        return mask_of(self.candidate.module)

    @property
    def orders(self) -> tuple[Tensor | None, Tensor | None]:
        """(input, output) order of the mask that it has already, see `permutation_of`."""
        return permutation_of(self.candidate.module)

    @property
    def groups(self) -> int:
        return cast(int, getattr(self.candidate.module, "groups", 1))


def find_layers(model: nn.Module) -> list[Candidate]:
    """Every ``nn.Linear`` and ``nn.Conv2d`` (subclasses too), shared ones once, in the order of ``named_modules``."""
    return [
        Candidate(names, module)
        for module, names in module_names(model).items()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]


def layer_problem(module: nn.Module, pattern: Pattern, *, under_others: bool = False) -> str | None:
    """Why this layer, seen alone, cannot be pruned to ``pattern``; None when it can.

    Args:
        under_others: whether a mask that is there already may have other parametrizations stacked on it.
    """
    if isinstance(getattr(module, "weight", None), nn.parameter.UninitializedParameter):
        return "it is lazy and was never run"
    others = foreign_parametrizations(module)
    if others and not (under_others and mask_leads(module)):
        return f"it has the parametrization {', '.join(others)}; remove it first"
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "it has no weight tensor"
    if weight.layout is not torch.strided:
        return f"its weight has layout {weight.layout}"
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}; supported are float32, bfloat16, float16 and float64"
    if weight.device.type == "meta":
        return "its weight is on the meta device and has no values"
    if weight.numel() == 0:
        return "its weight is empty"
    if not bool(torch.isfinite(weight.detach()).all()):
        return "its weight holds NaN or infinity"
    groups = cast(int, getattr(module, "groups", 1))
    if groups > 1 and weight.shape[1] == 1:
        return "it is depthwise: each output has a single input channel"
    return pattern.fits(weight, groups)


def tie(model: nn.Module, chosen: list[Candidate]) -> tuple[list[PrunableLayer], dict[str, str]]:
    """The chosen candidates with tied ones joined, and name → reason of those whose weight something else uses too.

    Pruning a linear that shares its weight with an embedding would zero the embedding's entries, or break the tie.
    """
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owner = name.removesuffix(".parametrizations.weight") if key == "original" else name
            owners[id(parameter)].append(owner.removesuffix("parametrizations.weight") if key == "original" else owner)
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in chosen:
        groups[id(original_weight(candidate.module))].append(candidate)
    layers: list[PrunableLayer] = []
    problems: dict[str, str] = {}
    for key, group in groups.items():
        known = {candidate.name for candidate in group}
        others = [owner for owner in owners[key] if owner not in known]
        if others:
            kind = nn.utils.parametrize.type_before_parametrizations(model.get_submodule(others[0])).__name__
            for candidate in group:
                problems[candidate.name] = (
                    f"its weight is tied to {others[0] or 'the model'} ({kind}), which is not pruned with it"
                )
        else:
            layers.append(PrunableLayer(group[0], tuple(group[1:])))
    return layers, problems
