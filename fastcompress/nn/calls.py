"""Calling an operator cheaply and safely: below autograd where no gradient is wanted, errors in the layer's words."""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import PackedBlobError

__all__ = [
    "below_autograd",
    "is_compiling",
    "is_grad_enabled",
    "is_transforming",
    "raise_blob_error",
    "refuse_transforms",
]

#: Context in which operators skip autograd: the backward formula is Python and costs 4 µs a call even when no gradient
#: is wanted (the rest of a layer call takes 3.5 µs), this context 0.5 µs. Tracing and profiling still see the call.
below_autograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)

is_compiling = torch.compiler.is_compiling
is_grad_enabled = torch.is_grad_enabled

_peek_interpreter: Any = torch._C._functorch.peek_interpreter_stack


def is_transforming() -> bool:
    """Whether forward-mode AD or a ``torch.func`` transform is active: below autograd its tangents would be lost."""
    return _peek_interpreter() is not None or forward_ad._current_level >= 0


def refuse_transforms(layer: str, input: Tensor) -> None:
    """Raise RuntimeError where a tangent would silently be zero or a transform has no formula; ``vmap`` is fine."""
    interpreter = _peek_interpreter()
    func = interpreter is not None and interpreter.key() != torch._C._functorch.TransformType.Vmap
    if func or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(input).tangent is not None):
        raise RuntimeError(
            f"{layer}: forward-mode AD and torch.func.grad/vjp/jvp do not pass through compressed layers; use "
            "tensor.backward() or torch.autograd.grad for gradients of the input, or the float model"
        )


def raise_blob_error(error: Exception) -> None:
    """Raise PackedBlobError when `error` is the operator's complaint about its packed weights."""
    if isinstance(error, RuntimeError) and str(error).startswith("packed weights:"):
        raise PackedBlobError(str(error)) from error
