"""Masking whose backward also says what the gradient would be without the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["MaskedWithProbes"]


class MaskedWithProbes(torch.autograd.Function):
    """``where(mask, weight, 0)``; its probes receive the gradient of masked positions too.

    A probe is a leaf tensor of zeros that autograd accumulates into, over all backward calls. Hooks would do the same,
    but `torch.compile` cannot compile them, and modules that hold them cannot be pickled.

    Args (of ``apply``):
        weight, mask: as in `fastcompress.nn.mask.Mask`.
        gradient_probe: receives dL/dw, dense; or None.
        product_probe: receives w * dL/dw, dense, with the weight that the forward saw; or None.
    """

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, gradient_probe: Tensor | None, product_probe: Tensor | None) -> Tensor:
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, mask, gradient_probe, product_probe = inputs
        ctx.probed = gradient_probe is not None, product_probe is not None
        ctx.save_for_backward(mask, *([] if product_probe is None else [weight]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        mask, *rest = ctx.saved_tensors
        plain, product = ctx.probed
        return (
            torch.where(mask, gradient, 0.0),
            None,
            gradient if plain else None,
            gradient * rest[0] if product else None,
        )
