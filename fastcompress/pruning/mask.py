"""Masks on weights: a parametrization that keeps pruned weights at zero through training, saving and copying."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fastcompress.nn.mask import (
    Mask,
    foreign_parametrizations,
    lift_mask,
    mask_leads,
    mask_module,
    masked,
    original_weight,
    remove_mask,
)
from fastcompress.nn.orders import checked_order
from fastcompress.nn.parametrization import weight_steps

__all__ = [
    "Mask",
    "apply_mask",
    "foreign_parametrizations",
    "lift_mask",
    "mask_leads",
    "mask_module",
    "mask_of",
    "masked",
    "original_weight",
    "permutation_of",
    "remove_mask",
    "sparsity_of",
]


def mask_of(module: nn.Module) -> Tensor | None:
    """The mask on ``module``'s weight (bool, its shape; True is kept), or None when it has none."""
    found = mask_module(module)
    return None if found is None else found.mask


def permutation_of(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """``(input_order, output_order)`` under which the mask has its pattern; None where it is the natural order."""
    found = mask_module(module)
    return (None, None) if found is None else (found.input_order, found.output_order)


def apply_mask(
    module: nn.Module,
    mask: Tensor,
    *,
    name: str | None = None,
    input_order: Tensor | None = None,
    output_order: Tensor | None = None,
) -> None:
    """Mask ``module``'s weight in place; a mask that is already there stays in force (both must keep a weight).

    Args:
        module: any module with a ``weight``.
        mask: bool, the weight's shape; True is kept. It is copied.
        name: what messages call the layer; by default its class.
        input_order, output_order: see `Mask`; they replace those of an earlier mask.

    Raises:
        TypeError: ``module`` has no weight tensor, or ``mask`` is not bool.
        ValueError: ``mask`` has another shape than the weight, an order is no permutation of its channels, or the
            module has other parametrizations and no mask before them. The module is unchanged.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> apply_mask(layer, mask_from_scores(layer.weight.detach().abs(), "2:4", 0.5))
    """
    label = type(module).__name__ if name is None else f"layer {name!r} ({type(module).__name__})"
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"apply_mask: {label} has no weight tensor; masks go on layers such as nn.Linear and nn.Conv2d")
    if is_lazy(weight):
        raise ValueError(f"apply_mask: {label} is lazy and was never run, so its weight has no shape yet")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = str(mask.dtype).removeprefix("torch.") if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"apply_mask: the mask of {label} must be a bool tensor, got {got}; a float mask converts with mask != 0"
        )
    if mask.shape != weight.shape:
        raise ValueError(
            f"apply_mask: the mask of {label} has shape {list(mask.shape)}, its weight {list(weight.shape)}; they must "
            "be equal"
        )
    others = foreign_parametrizations(module)
    if others and not mask_leads(module):
        raise ValueError(
            f"apply_mask: {label} already has the parametrization {', '.join(others)}, which a mask would disturb; "
            "remove it first with torch.nn.utils.parametrize.remove_parametrizations"
        )
    if input_order is not None:
        input_order = checked_order(f"apply_mask: input_order of {label}", input_order, weight.shape[1])
        input_order = input_order.to(weight.device)
    if output_order is not None:
        output_order = checked_order(f"apply_mask: output_order of {label}", output_order, weight.shape[0])
        output_order = output_order.to(weight.device)
    found = mask_module(module)
    new = mask.detach().to(weight.device)
    if found is None:
        added = Mask(new.clone(), input_order, output_order)
        if weight_steps(module):  # the others, such as fake quantization, see the zeros
            chain = cast(nn.ModuleList, cast(nn.ModuleDict, module.parametrizations)["weight"])
            chain.insert(0, added.train(module.training))
            return
        parametrize.register_parametrization(module, "weight", added)
        # torch leaves the containers that it makes in training mode.
        cast(nn.ModuleDict, module.parametrizations).train(module.training)
        return
    found.mask = found.mask & new
    if input_order is not None or output_order is not None:
        found.input_order, found.output_order = input_order, output_order


def sparsity_of(module: nn.Module) -> float:
    """Fraction of ``module``'s weight that is zero, from 0 to 1; for a model, over the masked layers' weights.

    Raises:
        ValueError: it has neither a weight nor a masked layer inside.

    Example:
        >>> sparsity_of(fc.prune(nn.Linear(8, 8), 0.5))
        0.5
    """
    weight = getattr(module, "weight", None)
    weights = [weight] if isinstance(weight, Tensor) else [cast(Tensor, m.weight) for m in masked(module).values()]
    total = sum(w.numel() for w in weights)
    if total == 0:
        raise ValueError(f"sparsity_of: {type(module).__name__} has no weight and no masked layer inside")
    return sum(int((w == 0).sum()) for w in weights) / total
