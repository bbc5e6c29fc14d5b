"""Fake quantization: the rounding of int8 layers in float, with straight-through and learned-step gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["attach", "fake_quantize"]


def _wide(scale: Tensor, x: Tensor) -> Tensor:
    """A scale per tensor (``[]``) or per entry of dimension 0 (``[out]``), shaped to broadcast against ``x``."""
    return scale.reshape(-1, *[1] * (x.dim() - 1)) if scale.dim() else scale


def _steps(x: Tensor, scale: Tensor, by_reciprocal: bool) -> Tensor:
    """``x`` in units of the scale, float32, by the operation that the executed layer uses."""
    wide = _wide(scale, x)
    return x.to(torch.float32) * (1.0 / wide) if by_reciprocal else x.to(torch.float32) / wide


class _FakeQuantize(torch.autograd.Function):
    """See `fake_quantize`."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        step: Tensor | None,
        step_factor: Any,
        low: float,
        high: float,
        nan_is_zero: bool,
        passes: bool,
    ) -> Tensor:
        rounded = torch.round(_steps(x, scale, zero_point is not None))
        if zero_point is None:
            centred = rounded.clamp(low, high)
        else:
            zero = zero_point.to(torch.float32)
            centred = (rounded + zero).clamp(low, high) - zero
        if nan_is_zero:
            centred = torch.where(torch.isnan(centred), 0.0, centred)
        return (centred * _wide(scale, x)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, zero_point, step, step_factor, low, high, _, passes = inputs
        ctx.save_for_backward(x, scale, zero_point, step_factor)
        ctx.low, ctx.high, ctx.learns, ctx.passes = low, high, step is not None, passes

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, zero_point, step_factor = ctx.saved_tensors
        if ctx.passes:
            return grad, *[None] * 8
        steps = _steps(x, scale, zero_point is not None)
        zero = 0.0 if zero_point is None else zero_point.to(torch.float32)
        rounded = torch.round(steps)
        shifted = rounded + zero
        inside = (shifted >= ctx.low) & (shifted <= ctx.high)
        grad_x = torch.where(inside, grad, 0.0) if ctx.needs_input_grad[0] else None
        grad_step = None
        if ctx.learns and ctx.needs_input_grad[3]:
            slope = torch.where(inside, rounded - steps, shifted.clamp(ctx.low, ctx.high) - zero)
            products = grad.to(torch.float32) * slope
            summed = products.flatten(1).sum(dim=1) if scale.dim() else products.sum()
            grad_step = summed * step_factor
        return grad_x, None, None, grad_step, *[None] * 5


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    low: int,
    high: int,
    *,
    step: Tensor | None = None,
    step_factor: Tensor | None = None,
    nan_is_zero: bool = False,
    passes: bool = False,
) -> Tensor:
    """Round ``x`` to the values that an int8 layer can hold, and pass gradients through the rounding.

    Forward, in float32, with the operations of docs/architecture.md §1 in their order::

        v = x * (1 / scale)   where there is a zero point (activations),   x / scale   where there is none (weights)
        y = (clamp(rint(v) + z, low, high) - z) * scale

    Backward. ``rint`` counts as the identity (straight-through). Where ``rint(v) + z`` lies in ``[low, high]``, ``y``
    then equals ``x``, and beyond it is a constant times the scale. Hence ``dy/dx = 1`` inside and 0 outside. For the
    scale, ``y = r(x / s) * s`` gives ``dy/ds = r - r'(v) * v``::

        dy/ds = rint(v) - v   inside,   low - z   below,   high - z   above

    which is summed over the elements that share the scale and multiplied by ``step_factor``.

    Args:
        x: float tensor of any shape; the result has its shape and dtype.
        scale: float32 ``[]``, or ``[out]`` for one per entry of dimension 0; positive.
        zero_point: int32 ``[]``, or None for a symmetric weight.
        low, high: the integers that there are: 0 and 255, -127 and 127, or -8 and 7.
        step: parameter of the scale's shape that receives the scale's gradient; its value is not used.
        step_factor: float32, broadcasts against ``scale``; needed with ``step``.
        nan_is_zero: NaN becomes real 0, as in the kernels; otherwise it is passed on.
        passes: ``dy/dx = 1`` outside too, for scales that follow ``x`` so that nothing lies further outside than a
            rounding. (Not with ``step``.)

    Example:
        >>> fake_quantize(torch.tensor([[0.26, 3.0]]), torch.tensor([0.5]), None, -2, 2)
        tensor([[0.5000, 1.0000]])

    Source: Bengio, Léonard & Courville, "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv
    1308.3432, 2013) for straight-through; Esser et al., "Learned Step Size Quantization" (ICLR 2020), eq. 1 to 3, for
    the scale; Bhalgat et al., "LSQ+" (CVPR workshops 2020), §3, for a zero point.
    """
    ends = float(low), float(high)
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, step, step_factor, *ends, nan_is_zero, passes)
    return result


class _Attach(torch.autograd.Function):
    """See `attach`."""

    @staticmethod
    def forward(x: Tensor, parameter: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (parameter,) = ctx.saved_tensors
        return grads[0], torch.zeros_like(parameter)


def attach(x: Tensor, parameter: Tensor | None) -> Tensor:
    """``x`` itself, while ``parameter`` (if there is one) gets a gradient of zeros.

    A learned scale that is not in use just now stays part of the graph, so that ``DistributedDataParallel``, which
    waits for the gradient of every parameter, does not wait forever.
    """
    if parameter is None or not torch.is_grad_enabled():
        return x
    result: Tensor = _Attach.apply(x, parameter)
    return result
