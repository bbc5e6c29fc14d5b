"""Layer → BatchNorm → activation: which chains hold at every call, so that one int8 layer can do all the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from fastcompress.models.flow import Flow
from fastcompress.models.parents import carries_hooks
from fastcompress.quantization.activations import epilogue_activation

__all__ = ["Fusion", "find_fusions", "foldable_norm", "is_foldable"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Fusion:
    """What one layer takes over.

    Attributes:
        norm: name of the BatchNorm to fold, or None.
        activation: epilogue activation, ``"none"`` when there is none.
        activation_module: name of the module that computed it, or None.
        held_back: why an activation that follows is not fused, for the report.
    """

    norm: str | None = None
    activation: str = "none"
    activation_module: str | None = None
    held_back: str = ""

    @property
    def removed(self) -> tuple[str, ...]:
        """Names of the modules that become ``nn.Identity``."""
        return tuple(name for name in (self.norm, self.activation_module) if name is not None)


def is_foldable(norm: nn.Module, channels: int) -> bool:
    """Whether ``norm`` is a BatchNorm with fixed statistics over this number of channels and nothing attached."""
    if type(norm) not in _NORMS or carries_hooks(norm):
        return False
    batch_norm = cast(nn.BatchNorm2d, norm)
    mean, variance = batch_norm.running_mean, batch_norm.running_var
    if mean is None or variance is None or batch_norm.num_features != channels:
        return False
    statistics = [mean, variance, *batch_norm.parameters()]
    return all(bool(torch.isfinite(t).all()) for t in statistics) and bool((variance + batch_norm.eps > 0).all())


def foldable_norm(name: str, layer: nn.Module, modules: Mapping[str, nn.Module], flow: Flow) -> str | None:
    """The BatchNorm that alone consumes ``name``'s output, and follows nothing else; None when there is none."""
    found = flow.sole_next(name)
    if found is None or flow.sole_source(found) != name:
        return None
    weight = getattr(layer, "weight", None)
    if weight is None or not is_foldable(modules[found], weight.shape[0]):
        return None
    if isinstance(layer, nn.Linear) and flow.output_dims[name] != {2}:
        return None  # BatchNorm1d takes dimension 1 for the channels, a linear the last
    return found


def find_fusions(
    layers: Mapping[str, nn.Module],
    modules: Mapping[str, nn.Module],
    flow: Flow,
    norms: Mapping[str, str | None] | None = None,
) -> dict[str, Fusion]:
    """The fusions for ``layers`` (name → its plain equivalent), all of which will be int8.

    ``norms`` names the BatchNorm of each layer where that is settled; by default it is found.

    An activation module that is used in several places goes only when every one of them is fused; otherwise it stays,
    for all of them, since it would be applied twice behind a layer that has it already.
    """
    if norms is None:
        norms = {name: foldable_norm(name, layer, modules, flow) for name, layer in layers.items()}
    ends = {norm or name: name for name, norm in norms.items()}  # where the chain ends so far → its layer
    activations: dict[str, str | None] = {}
    fusions: dict[str, Fusion] = {}
    for end, name in ends.items():
        following = flow.sole_next(end)
        fusions[name] = Fusion(norm=norms[name])
        if following is None or following in layers:
            continue
        if following not in activations:
            module = modules[following]
            activations[following] = None if carries_hooks(module) else epilogue_activation(module)
        activation = activations[following]
        if activation is None:
            continue
        outside = _not_fused(flow.sources[following], following, ends, flow)
        if outside:
            fusions[name] = Fusion(norm=norms[name], held_back=f"{following} also follows {outside}, so it stays")
        else:
            fusions[name] = Fusion(norms[name], activation, following)
    return fusions


def _not_fused(sources: Iterable[str | None], activation: str, ends: Mapping[str, str], flow: Flow) -> str:
    """The first source of an activation module that cannot take it over, or an empty string."""
    for source in sorted(sources, key=str):
        if source is None:
            return "something that is not a layer"
        if source not in ends or flow.sole_next(source) != activation:
            return source
    return ""
