"""Shape functions for ``torch.compile`` and ``torch.export``: the same checks as the kernels, no data touched."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from . import chain, checks, embedding
from .reference import memory_format

__all__ = ["register"]


def _quantize_per_tensor(input: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    checks.check_quantize_per_tensor(input, scale, zero_point, dtype)
    return input.new_empty(input.shape, dtype=dtype)


def _quantize_per_token(input: Tensor, symmetric: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    checks.check_quantize_per_token(input)
    rows = input.shape[:-1]
    return (
        input.new_empty(input.shape, dtype=torch.uint8),
        input.new_empty(rows, dtype=torch.float32),
        input.new_empty(rows, dtype=torch.int32),
    )


def _linear_w8a8(
    input: Tensor,
    packed: Tensor,
    out_features: int,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
) -> Tensor:
    shape, dtype = checks.check_linear(
        input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, input_scale, input_zero_point
    )
    return input.new_empty(shape, dtype=dtype)


def _linear_real(
    op: str,
    input: Tensor,
    packed: Tensor,
    out_features: int,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
) -> Tensor:
    shape, dtype = checks.check_linear(
        input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, op=op
    )
    return input.new_empty(shape, dtype=dtype)


def _conv2d(
    op: str,
    input: Tensor,
    packed: Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
) -> Tensor:
    shape, dtype = checks.check_conv2d(
        input,
        packed,
        out_channels,
        kernel_size,
        stride,
        padding,
        dilation,
        residual,
        out_dtype,
        out_scale,
        out_zero_point,
        op=op,
    )
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    if len(shape) == 4:
        return torch.empty(shape, dtype=dtype, device=input.device, memory_format=memory_format(batched))
    whole = torch.empty([1, *shape], dtype=dtype, device=input.device, memory_format=memory_format(batched))
    return whole.squeeze(0)


def _linear_backward(
    grad_output: Tensor,
    input: Tensor,
    packed: Tensor,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), grad_output.new_empty(grad_output.shape, dtype=torch.float32)


def _conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    packed: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), grad_output.new_empty(grad_output.shape, dtype=torch.float32)


def _dequantize(packed: Tensor, field: str, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return packed.new_empty(size, dtype=dtype)


def register(library: torch.library.Library) -> None:
    """Register a shape function for every operator."""
    for function in (
        _quantize_per_tensor,
        _quantize_per_token,
        _linear_w8a8,
        _dequantize,
        _linear_backward,
        _conv2d_backward,
    ):
        torch.library.register_fake(f"fastcompress::{function.__name__[1:]}", function, lib=library)
    for op in ("linear_bsr", "linear_w4", "linear_w8"):
        torch.library.register_fake(f"fastcompress::{op}", partial(_linear_real, op), lib=library)
    for op in ("conv2d_w8a8", "conv2d_bsr"):
        torch.library.register_fake(f"fastcompress::{op}", partial(_conv2d, op), lib=library)
    torch.library.register_fake("fastcompress::embedding_packed", embedding.embedding_packed_fake, lib=library)
    torch.library.register_fake("fastcompress::conv2d_chain", chain.conv2d_chain_fake, lib=library)
