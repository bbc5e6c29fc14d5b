"""Backward passes: the gradient reaches input and residual through the dequantized weight.

Rounding counts as the identity (straight-through estimator, Bengio et al. 2013, arXiv 1308.3432), static activations
that saturate pass nothing on (as torch's own fake quantization), and the per-token scale of dynamic activations counts
as a constant. Weights, scales and bias live in the packed blob and receive no gradient. Not differentiable twice.

The formulas run on every call, gradient or not, and cost 4 microseconds; layers therefore step below autograd when
no gradient is wanted (``nn.calls.below_autograd``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from . import packing
from .arithmetic import static_mask
from .arithmetic_w4 import linear_sums
from .canonical import W8A8Canonical
from .canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical

__all__ = ["BACKWARD", "conv2d_backward", "linear_backward", "register"]

_aten = torch.ops.aten


def _activation_gradient(name: str, grad: Tensor, v: Tensor) -> Tensor:
    """``grad * activation'(v)``, float32."""
    if name == "relu":
        return _aten.threshold_backward(grad, v, 0.0)
    if name == "relu6":
        return _aten.hardtanh_backward(grad, v, 0.0, 6.0)
    if name == "gelu":
        return _aten.gelu_backward(grad, v)
    if name == "gelu_tanh":
        return _aten.gelu_backward(grad, v, approximate="tanh")
    if name == "silu":
        return _aten.silu_backward(grad, v)
    if name == "hardswish":
        return _aten.hardswish_backward(grad, v)
    return _aten.hardsigmoid_backward(grad, v)


def _real_before_activation(product: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    v = product if bias is None else product + bias
    return v if residual is None else v + residual.to(torch.float32)


def _before_activation(acc: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return _real_before_activation(acc.to(torch.float32) * scale, bias, residual)


def _mask(input: Tensor, grad: Tensor, c: packing.Canonical) -> Tensor:
    if isinstance(c, (W8A8Canonical, SparseW8A8Canonical)) and c.input_mode == "static" and input.dtype != torch.uint8:
        grad = torch.where(static_mask(input, c.input_scale, c.input_zero_point), grad, 0.0)
    return grad.to(input.dtype)


def _linear_before(
    c: packing.Canonical,
    input: Tensor,
    packed: Tensor,
    residual: Tensor | None,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
) -> Tensor:
    """What the activation function saw in the forward pass, computed again."""
    if isinstance(c, SparseCanonical):
        return _real_before_activation(F.linear(input.to(torch.float32), c.dequantize()), c.bias, residual)
    if isinstance(c, (W4Canonical, W8Canonical)):
        return _real_before_activation(linear_sums(input, c), c.bias, residual)
    ops = torch.ops.fastcompress
    tokens = {"input_scale": input_scale, "input_zero_point": input_zero_point}
    acc = ops.linear_w8a8(input, packed, c.weight_shape[0], out_dtype=torch.int32, **tokens)
    x_scale: Tensor | float = c.input_scale
    if input_scale is not None:
        x_scale = input_scale.unsqueeze(-1)
    elif c.input_mode != "static":
        x_scale = ops.quantize_per_token(input, c.input_mode == "dynamic_symmetric")[1].unsqueeze(-1)
    return _before_activation(acc, c.weight_scale * x_scale, c.bias, residual)


def linear_backward(
    grad_output: Tensor,
    input: Tensor,
    packed: Tensor,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``linear_w8a8``, ``linear_w4``, ``linear_w8`` and ``linear_bsr``.

    Returns that of the input (its shape and dtype) and, float32, that before the activation.
    """
    c = packing.unpack(packed)
    grad = grad_output.to(torch.float32)
    if c.activation != "none":
        v = _linear_before(c, input, packed, residual, input_scale, input_zero_point)
        grad = _activation_gradient(c.activation, grad, v)
    grad_input = _mask(input, grad @ c.dequantize(), c)
    # An operator's outputs must not share memory with its inputs.
    return grad_input.contiguous(), grad.contiguous() if grad is not grad_output else grad.clone()


def _conv2d_before(
    c: packing.Canonical,
    input: Tensor,
    packed: Tensor,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]],
    residual: Tensor | None,
) -> Tensor:
    """What the activation function saw in the forward pass, computed again; geometry as the operator takes it."""
    assert not isinstance(c, (W4Canonical, W8Canonical))
    bias = None if c.bias is None else c.bias.view(-1, 1, 1)
    if isinstance(c, SparseCanonical):
        _, stride, (top, bottom, left, right), dilation = geometry
        padded = F.pad(input.to(torch.float32), (left, right, top, bottom))
        product = F.conv2d(padded, c.dequantize(), stride=tuple(stride), dilation=tuple(dilation))
        return _real_before_activation(product, bias, residual)
    acc = torch.ops.fastcompress.conv2d_w8a8(input, packed, c.weight_shape[0], *geometry, out_dtype=torch.int32)
    return _before_activation(acc, (c.weight_scale * c.input_scale).view(-1, 1, 1), bias, residual)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    packed: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``conv2d_w8a8`` and ``conv2d_bsr``.

    Returns that of the input (its shape and dtype) and, float32, that before the activation.
    """
    c = packing.unpack(packed)
    grad = grad_output.to(torch.float32)
    if c.activation != "none":
        v = _conv2d_before(c, input, packed, (kernel_size, stride, padding, dilation), residual)
        grad = _activation_gradient(c.activation, grad, v)
    batch = grad if grad.dim() == 4 else grad.unsqueeze(0)
    top, bottom, left, right = padding
    height, width = input.shape[-2:]
    padded = [batch.shape[0], input.shape[-3], height + top + bottom, width + left + right]
    groups = 1 if isinstance(c, SparseCanonical) else c.groups
    whole = conv2d_input(padded, c.dequantize(), batch, stride=tuple(stride), dilation=tuple(dilation), groups=groups)
    inner = whole[:, :, top : top + height, left : left + width].reshape(input.shape)
    return _mask(input, inner, c).contiguous(), grad.contiguous() if grad is not grad_output else grad.clone()


#: Implementations of the backward operators in ``schemas.PYTHON_SCHEMAS``.
BACKWARD = {"linear_backward": linear_backward, "conv2d_backward": conv2d_backward}


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, packed, _, residual, _, _, _, *tokens = inputs  # tokens: input_scale, input_zero_point of int8 layers
    ctx.save_for_backward(input, packed, residual, *tokens)


def _linear(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    input, packed, residual, *tokens = ctx.saved_tensors
    grad_input, grad_residual = torch.ops.fastcompress.linear_backward(grad_output, input, packed, residual, *tokens)
    rest = [None] * (3 + len(tokens))
    return (_float_only(grad_input), None, None, _as(grad_residual, residual), *rest)


def _setup_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, packed, _, *geometry, residual, _, _, _ = inputs
    ctx.save_for_backward(input, packed, residual)
    ctx.geometry = geometry


def _conv2d(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    input, packed, residual = ctx.saved_tensors
    grad_input, grad_residual = torch.ops.fastcompress.conv2d_backward(
        grad_output, input, packed, *ctx.geometry, residual
    )
    return (_float_only(grad_input), None, None, None, None, None, None, _as(grad_residual, residual), None, None, None)


def _float_only(grad: Tensor) -> Tensor | None:
    return grad if grad.is_floating_point() else None  # u8 input has no gradient


def _as(grad: Tensor, residual: Tensor | None) -> Tensor | None:
    return None if residual is None else grad.to(residual.dtype)


def _twice(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "fastcompress: compressed layers cannot be differentiated twice; drop create_graph=True, or take second "
        "derivatives of the float model"
    )


def _no_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("fastcompress: conv2d_chain has no gradient; use the model that was frozen")


def _no_embedding_gradient(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    return (None,) * 5  # indices and packed weights get none


def register(library: torch.library.Library) -> None:
    """Register the backward formulas, and an error for second derivatives."""
    for op in ("linear_w4", "linear_w8"):
        torch.library.register_autograd(f"fastcompress::{op}", _linear, setup_context=_setup_linear, lib=library)
    for kind in ("w8a8", "bsr"):
        for layer, backward, setup in (("linear", _linear, _setup_linear), ("conv2d", _conv2d, _setup_conv2d)):
            torch.library.register_autograd(f"fastcompress::{layer}_{kind}", backward, setup_context=setup, lib=library)
    torch.library.register_autograd("fastcompress::conv2d_chain", _no_gradient, lib=library)
    torch.library.register_autograd("fastcompress::embedding_packed", _no_embedding_gradient, lib=library)
    for name in BACKWARD:
        torch.library.register_autograd(f"fastcompress::{name}", _twice, lib=library)
