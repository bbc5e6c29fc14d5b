"""The chain of parametrizations on a weight: adding a step in front, taking one step off, and who belongs there."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["WeightTransform", "drop_step", "weight_steps"]


class WeightTransform(nn.Module):
    """Base of the parametrizations that this package puts on a weight after its mask, whose zeros they see and keep."""

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored when the weight is assigned: all of it."""
        return weight


def weight_steps(module: nn.Module) -> list[nn.Module]:
    """The parametrizations on ``module``'s weight, in the order in which they are applied; empty when it has none."""
    if not parametrize.is_parametrized(module, "weight"):
        return []
    return list(cast(nn.ModuleList, cast(nn.ModuleDict, module.parametrizations)["weight"]))


def drop_step(module: nn.Module, step: nn.Module) -> None:
    """Take one parametrization off ``module``'s weight in place; the weight underneath stays the same object.

    Nothing is written into the weight. With its last parametrization the module is of its plain class again.

    Raises:
        ValueError: ``step`` is not there, or it is the last one while another tensor of ``module`` is parametrized.
    """
    steps = weight_steps(module)
    if not any(step is other for other in steps):
        raise ValueError(f"drop_step: the weight of {type(module).__name__} has no such {type(step).__name__}")
    holder: Any = module
    if len(steps) > 1:
        chain: nn.ModuleList = holder.parametrizations.weight
        del chain[next(i for i, other in enumerate(steps) if other is step)]
        return
    others = [name for name in holder.parametrizations if name != "weight"]
    if others:
        raise ValueError(
            f"drop_step: {', '.join(others)} of {parametrize.type_before_parametrizations(module).__name__} is "
            "parametrized too; remove that with torch.nn.utils.parametrize.remove_parametrizations"
        )
    # Not torch's remove_parametrizations: it deletes the property from the class, which deep copies share.
    original: torch.Tensor = holder.parametrizations.weight.original
    plain = parametrize.type_before_parametrizations(module)
    del holder.parametrizations
    module.__class__ = plain
    kind: dict[str, Any] = module._parameters if isinstance(original, nn.Parameter) else module._buffers
    rest = dict(kind)
    kind.clear()
    kind.update({"weight": original, **rest})
