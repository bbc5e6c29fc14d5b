"""The mask of a pruned weight: what pruning puts on a layer, and what quantization and conversion find there."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Mask", "only_masked"]


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


def only_masked(module: nn.Module) -> bool:
    """Whether a mask on the weight is the only parametrization of ``module``; its weight then reads as any other."""
    if not parametrize.is_parametrized(module):
        return False
    chains = cast(nn.ModuleDict, module.parametrizations)
    return all(
        name == "weight" and all(isinstance(step, Mask) for step in cast(nn.ModuleList, chain))
        for name, chain in chains.items()
    )
