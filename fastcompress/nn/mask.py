"""The mask of a pruned weight: what pruning puts on a layer, and what quantization and conversion find there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .dense_gradient import MaskedWithProbes
from .parametrization import WeightTransform, drop_step, weight_steps

__all__ = [
    "Mask",
    "foreign_parametrizations",
    "lift_mask",
    "mask_leads",
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

    # Leaves that collect gradients of masked positions, see `watch`; neither parameters nor buffers, and not copied.
    gradient_probe: Tensor | None = None
    product_probe: Tensor | None = None

    def __init__(self, mask: Tensor, input_order: Tensor | None = None, output_order: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("input_order", input_order)
        self.register_buffer("output_order", output_order)

    def forward(self, weight: Tensor) -> Tensor:
        if self.gradient_probe is not None or self.product_probe is not None:
            masked: Tensor = MaskedWithProbes.apply(weight, self.mask, self.gradient_probe, self.product_probe)
            return masked
        # Not a product: that would make NaN of a masked infinity and -0.0 of a masked negative weight.
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored when the weight is assigned: all of it."""
        return weight

    def watch(self, weight: Tensor, *, gradient: bool = False, product: bool = False) -> None:
        """Collect dense gradients of ``weight`` from now on, in the ``grad`` of the probes; see `MaskedWithProbes`.

        Copies and pickles of this module do not collect. With neither ``gradient`` nor ``product`` it stops.
        """
        self.gradient_probe = torch.zeros_like(weight, requires_grad=True) if gradient else None
        self.product_probe = torch.zeros_like(weight, requires_grad=True) if product else None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("gradient_probe", "product_probe")}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mask:
        super()._apply(fn, recurse)
        for name in ("gradient_probe", "product_probe"):
            probe = getattr(self, name)
            if probe is not None:
                setattr(self, name, fn(probe.detach()).detach().requires_grad_())
        return self


def mask_module(module: nn.Module) -> Mask | None:
    """The `Mask` on ``module``'s weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    chain = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return next((step for step in cast(nn.ModuleList, chain) if isinstance(step, Mask)), None)


def mask_leads(module: nn.Module) -> bool:
    """Whether the first thing that happens to ``module``'s weight is a mask; others may follow."""
    found = mask_module(module)
    return found is not None and cast(nn.ModuleDict, module.parametrizations)["weight"][0] is found  # type: ignore[index]


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
