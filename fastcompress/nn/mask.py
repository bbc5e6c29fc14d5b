"""The mask of a pruned weight: what pruning puts on a layer, and what quantization and conversion find there."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .parametrization import WeightTransform, drop_step, weight_steps

__all__ = [
    "Mask",
    "foreign_parametrizations",
    "lift_mask",
    "mask_module",
    "masked",
    "only_masked",
    "original_weight",
    "remove_mask",
]


class Mask(nn.Module):
    """The parametrization of a pruned weight: zero where the mask is False.

    The weight underneath keeps its values and its place in the optimizer; its gradient is zero where it is masked.

    Args:
        mask: bool, the weight's shape; True is kept.
        input_order, output_order: int64 permutations of the input channels and the outputs under which the mask has
            its pattern (see `fastcompress.pruning.permutation`); None where that is the natural order.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> apply_mask(layer, torch.tensor([[True, False, True, False]]))
        >>> layer.weight[0, 1].item()
        0.0
    """

    mask: Tensor
    input_order: Tensor | None
    output_order: Tensor | None

    def __init__(self, mask: Tensor, input_order: Tensor | None = None, output_order: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("input_order", input_order)
        self.register_buffer("output_order", output_order)

    def forward(self, weight: Tensor) -> Tensor:
        # Not a product: that would make NaN of a masked infinity and -0.0 of a masked negative weight.
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored when the weight is assigned: all of it."""
        return weight


def mask_module(module: nn.Module) -> Mask | None:
    """The `Mask` on ``module``'s weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    chain = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return next((step for step in cast(nn.ModuleList, chain) if isinstance(step, Mask)), None)


def masked(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module, of every module in ``model`` that carries a mask."""
    return {name: module for name, module in model.named_modules() if mask_module(module) is not None}


def original_weight(module: nn.Module) -> Tensor:
    """The weight parameter itself, underneath a mask and other steps of this package if there are any."""
    if not any(isinstance(step, (Mask, WeightTransform)) for step in weight_steps(module)):
        return cast(Tensor, module.weight)
    return cast(Tensor, cast(Any, module).parametrizations.weight.original)


def foreign_parametrizations(module: nn.Module) -> list[str]:
    """Class names of the parametrizations on ``module`` that this package did not put on its weight."""
    if not parametrize.is_parametrized(module):
        return []
    chains = cast(nn.ModuleDict, module.parametrizations)
    return [
        type(step).__name__
        for tensor, chain in chains.items()
        for step in cast(nn.ModuleList, chain)
        if not (tensor == "weight" and isinstance(step, (Mask, WeightTransform)))
    ]


def only_masked(module: nn.Module) -> bool:
    """Whether a mask on the weight is the only parametrization of ``module``; its weight then reads as any other."""
    if not parametrize.is_parametrized(module) or foreign_parametrizations(module):
        return False
    return not any(isinstance(step, WeightTransform) for step in weight_steps(module))


def remove_mask(module: nn.Module) -> None:
    """Write the zeros into ``module``'s weight and take the mask off, in place; nothing happens without a mask.

    The weight stays the same parameter object, so an optimizer keeps it.

    Raises:
        ValueError: the module has other parametrizations as well.
    """
    _take_off(module, bake=True)


def lift_mask(module: nn.Module) -> None:
    """Take the mask off ``module`` in place and show the weight underneath, as if it had never been pruned."""
    _take_off(module, bake=False)


def _take_off(module: nn.Module, *, bake: bool) -> None:
    mask = mask_module(module)
    if mask is None:
        return
    others = foreign_parametrizations(module)
    if others:
        raise ValueError(
            f"remove_mask: {parametrize.type_before_parametrizations(module).__name__} also has the parametrization "
            f"{', '.join(others)}; remove all with torch.nn.utils.parametrize.remove_parametrizations"
        )
    if bake:
        original = original_weight(module)
        with torch.no_grad():
            original.copy_(mask(original))
    drop_step(module, mask)
