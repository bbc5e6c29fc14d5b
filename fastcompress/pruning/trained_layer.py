"""A layer whose mask changes while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .layers import PrunableLayer
from .mask import Mask, mask_module
from .permute import permuted, restored

__all__ = ["TrainedLayer", "take_gradients", "take_products"]


@dataclass(frozen=True)
class TrainedLayer:
    """A weight with its masks; there are several where modules share it.

    Attributes:
        layer: the weight and the modules that compute with it.
        sparsity: pruned fraction at the end of the schedule.
    """

    layer: PrunableLayer
    sparsity: float

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def parameter(self) -> Tensor:
        """What the optimizer trains, underneath the mask."""
        return self.layer.parameter

    @cached_property
    def masks(self) -> tuple[Mask, ...]:
        """The masks of all modules; to be asked for when they are in place."""
        return tuple(found for module in self.layer.modules if (found := mask_module(module)) is not None)

    @property
    def mask(self) -> Tensor:
        """bool, the weight's shape; True is kept. All modules have the same."""
        return self.masks[0].mask

    @property
    def weight(self) -> Tensor:
        """The masked float weight, before anything that is stacked on the mask; detached."""
        return torch.where(self.mask, self.parameter.detach(), 0.0)

    def in_order(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape in the order of channels in which the mask has its pattern."""
        return permuted(tensor, *self.layer.orders)

    def out_of_order(self, tensor: Tensor) -> Tensor:
        """The way back from `in_order`."""
        return restored(tensor, *self.layer.orders)

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Change the masks in place, so that compiled models and optimizers go on with them."""
        for module in self.masks:
            module.mask.copy_(mask)

    @torch.no_grad()
    def zero(self, where: Tensor) -> None:
        """Set the weight underneath the mask to zero where ``where`` is True."""
        self.parameter.masked_fill_(where, 0.0)

    def watch(self, *, gradient: bool, product: bool) -> None:
        """Collect dense gradients of the weight, see `Mask.watch`."""
        for module in self.masks:
            module.watch(self.parameter.detach(), gradient=gradient, product=product)


def take_gradients(layers: Sequence[TrainedLayer]) -> list[Tensor | None]:
    """Each layer's dense dL/dw since the last call, None where no backward came; forgets it."""
    return [_taken([mask.gradient_probe for mask in layer.masks]) for layer in layers]


def take_products(layers: Sequence[TrainedLayer]) -> list[Tensor | None]:
    """Each layer's dense w * dL/dw since the last call, None where no backward came; forgets it."""
    return [_taken([mask.product_probe for mask in layer.masks]) for layer in layers]


def _taken(probes: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for probe in probes:
        if probe is not None and probe.grad is not None:
            total = probe.grad if total is None else total + probe.grad
            probe.grad = None
    return total
