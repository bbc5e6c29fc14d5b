"""Every operator in plain torch: what runs without native kernels, and what they are tested against.

Integer sums are float64 products of integers, exact below 2^53 (the largest possible sum is below 2^31), so this
works on every device that has float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, reference_groups, reference_layout
from .arithmetic import epilogue, quantize_rows, quantize_static, real_epilogue
from .arithmetic_w4 import linear_sums

__all__ = [
    "conv2d_bsr",
    "conv2d_w8a8",
    "decode_for",
    "linear_bsr",
    "linear_w4",
    "linear_w8",
    "linear_w8a8",
    "memory_format",
    "quantize_per_tensor",
    "quantize_per_token",
]


def decode_for(op: str, packed: Tensor, family: str) -> dict[str, Any]:
    """Decode a reference blob for `op`. Raises PackedBlobError, or ValueError when it holds another family."""
    fields = reference_layout.decode(packed)
    layer = "linear" if fields["weight"].dim() == 2 else "conv2d"
    found = f"{layer}_w8a8" if fields["weight"].dtype == torch.int8 else f"{layer}_bsr"
    if found != family:
        raise ValueError(f"{op}: `packed` holds a {found} layer, expected {family}")
    return fields


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format in which a convolution of `x` ``[N,C,H,W]`` answers: channels-last if its channels lie
    innermost, else contiguous. Where both are true (one channel, one pixel), the strides of the dimensions of size 1
    decide as they do for dense tensors in torch: those of a tensor that was made channels-last grow from C to N."""
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    if not x.is_contiguous():
        return torch.channels_last
    least = 0
    for dim in (1, 3, 2, 0):
        if x.stride(dim) < least or (dim == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = x.stride(dim) * x.shape[dim]
    return torch.channels_last


def quantize_per_tensor(input: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """``clamp(rint(x * (1/scale)) + zero_point)`` as uint8 or int8 in the input's shape, contiguous."""
    checks.check_quantize_per_tensor(input, scale, zero_point, dtype)
    return quantize_static(input.contiguous(), scale, zero_point, dtype)


def quantize_per_token(input: Tensor, symmetric: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Per-row u8 quantization: q ``[..., K]``, scale float32 ``[...]``, zero point int32 ``[...]``."""
    checks.check_quantize_per_token(input)
    return quantize_rows(input.contiguous(), symmetric)


def _linear_activations(
    input: Tensor, fields: dict[str, Any], input_scale: Tensor | None, input_zero_point: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """u8 activations with scale and zero point that broadcast against ``[..., N]``."""
    mode = fields["input_mode"]
    if input_scale is not None and input_zero_point is not None:
        return input, input_scale.unsqueeze(-1), input_zero_point.unsqueeze(-1)
    if mode == "static":
        scale = torch.tensor(fields["input_scale"], dtype=torch.float32, device=input.device)
        zero = torch.tensor(fields["input_zero_point"], dtype=torch.int32, device=input.device)
        if input.dtype != torch.uint8:
            input = quantize_static(input, fields["input_scale"], fields["input_zero_point"])
        return input, scale, zero
    if input.dtype == torch.uint8:
        raise ValueError(
            f"linear_w8a8: `input` is uint8 and the layer's input mode is {mode}: pass `input_scale` and "
            "`input_zero_point` from quantize_per_token"
        )
    q, row_scale, row_zero = quantize_rows(input, symmetric=mode == "dynamic_symmetric")
    return q, row_scale.unsqueeze(-1), row_zero.unsqueeze(-1)


def _linear_weight(op: str, fields: dict[str, Any], input: Tensor, out_features: int) -> Tensor:
    weight: Tensor = fields["weight"]
    if weight.shape[0] != out_features:
        raise ValueError(f"{op}: `out_features` is {out_features}, but `packed` holds {weight.shape[0]}")
    if input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: `input` has {input.shape[-1]} features (shape {list(input.shape)}), the layer takes "
            f"{weight.shape[1]}"
        )
    return weight


def linear_w8a8(
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
    """``torch.ops.fastcompress.linear_w8a8`` on a reference blob: ``[..., K]`` to ``[..., out_features]``.

    Raises:
        TypeError, ValueError: bad arguments (see ``checks.check_linear``).
        PackedBlobError: the blob is corrupt or in another layout.
    """
    op = "linear_w8a8"
    shape, dtype = checks.check_linear(
        input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, input_scale, input_zero_point
    )
    fields = decode_for(op, packed, op)
    weight = _linear_weight(op, fields, input, out_features)
    q, scale, zero = _linear_activations(input, fields, input_scale, input_zero_point)
    centred = q.to(torch.float64) - zero.to(torch.float64)
    acc = (centred @ weight.t().to(torch.float64)).to(torch.int32)
    out = epilogue(
        acc,
        scale * fields["weight_scale"],
        fields["bias"],
        residual,
        fields["activation"],
        dtype,
        out_scale,
        out_zero_point,
    )
    return out.contiguous().view(shape)


def linear_bsr(
    input: Tensor,
    packed: Tensor,
    out_features: int,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
) -> Tensor:
    """``torch.ops.fastcompress.linear_bsr`` on a reference blob; the sums are those of float64, rounded to float32.

    Raises:
        TypeError, ValueError: bad arguments (see ``checks.check_linear``).
        PackedBlobError: the blob is corrupt or in another layout.
    """
    op = "linear_bsr"
    shape, dtype = checks.check_linear(
        input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, op=op
    )
    fields = decode_for(op, packed, op)
    weight = _linear_weight(op, fields, input, out_features)
    sums = input.to(torch.float64) @ weight.t().to(torch.float64)
    out = real_epilogue(sums, fields["bias"], residual, fields["activation"], dtype, out_scale, out_zero_point)
    return out.contiguous().view(shape)


def _linear_groups(
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
    if not reference_groups.is_reference(packed):
        raise ValueError(f"{op}: `packed` holds no layer with weights in groups in the reference layout")
    c = reference_groups.unpack(packed)
    if c.family != op:
        raise ValueError(f"{op}: `packed` holds a {c.family} layer, expected {op}")
    if c.weight_shape != (out_features, input.shape[-1]):
        raise ValueError(
            f"{op}: `packed` holds a weight of shape {list(c.weight_shape)}, `out_features` is {out_features} and "
            f"`input` has shape {list(input.shape)}"
        )
    sums = linear_sums(input, c)
    out = real_epilogue(sums, c.bias, residual, c.activation, dtype, out_scale, out_zero_point)
    return out.contiguous().view(shape)


def linear_w4(
    input: Tensor,
    packed: Tensor,
    out_features: int,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
) -> Tensor:
    """``torch.ops.fastcompress.linear_w4`` on a reference blob.

    Raises:
        TypeError, ValueError: bad arguments (see ``checks.check_linear``).
        PackedBlobError: the blob is corrupt or in another layout.
    """
    return _linear_groups("linear_w4", input, packed, out_features, residual, out_dtype, out_scale, out_zero_point)


def linear_w8(
    input: Tensor,
    packed: Tensor,
    out_features: int,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
) -> Tensor:
    """``torch.ops.fastcompress.linear_w8`` on a reference blob.

    Raises:
        TypeError, ValueError: bad arguments (see ``checks.check_linear``).
        PackedBlobError: the blob is corrupt or in another layout.
    """
    return _linear_groups("linear_w8", input, packed, out_features, residual, out_dtype, out_scale, out_zero_point)


def _conv2d_weight(
    op: str, fields: dict[str, Any], input: Tensor, out_channels: int, kernel_size: Sequence[int]
) -> Tensor:
    weight: Tensor = fields["weight"]
    if [weight.shape[0], *weight.shape[2:]] != [out_channels, *kernel_size]:
        raise ValueError(
            f"{op}: `out_channels` {out_channels} and `kernel_size` {list(kernel_size)} do not fit `packed`, which "
            f"holds {weight.shape[0]} channels of {list(weight.shape[2:])}"
        )
    channels = weight.shape[1] * fields["groups"]
    if input.shape[-3] != channels:
        raise ValueError(
            f"{op}: `input` has {input.shape[-3]} channels (shape {list(input.shape)}), the layer takes {channels}"
        )
    return weight


def conv2d_w8a8(
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
    """``torch.ops.fastcompress.conv2d_w8a8`` on a reference blob: ``[N,C,H,W]`` to ``[N,out_channels,H',W']``.

    Raises:
        TypeError, ValueError: bad arguments (see ``checks.check_conv2d``).
        PackedBlobError: the blob is corrupt or in another layout.
    """
    op = "conv2d_w8a8"
    _, dtype = checks.check_conv2d(
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
    )
    fields = decode_for(op, packed, op)
    weight = _conv2d_weight(op, fields, input, out_channels, kernel_size)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    q = batched
    if batched.dtype != torch.uint8:
        q = quantize_static(batched, fields["input_scale"], fields["input_zero_point"])
    # Padding is the zero point, that is, 0 once the zero point is taken off.
    top, bottom, left, right = padding
    centred = F.pad(q.to(torch.float64) - float(fields["input_zero_point"]), (left, right, top, bottom))
    sums = F.conv2d(
        centred, weight.to(torch.float64), stride=tuple(stride), dilation=tuple(dilation), groups=fields["groups"]
    )
    acc = torch.round(sums).to(torch.int32)  # round: a backend may choose a fast algorithm that is off by 1e-9
    scale = torch.tensor(fields["input_scale"], dtype=torch.float32, device=input.device) * fields["weight_scale"]
    bias = fields["bias"]
    if residual is not None and residual.dim() == 3:
        residual = residual.unsqueeze(0)
    out = epilogue(
        acc,
        scale.view(-1, 1, 1),
        None if bias is None else bias.view(-1, 1, 1),
        residual,
        fields["activation"],
        dtype,
        out_scale,
        out_zero_point,
    )
    out = out.contiguous(memory_format=memory_format(batched))
    return out if input.dim() == 4 else out.squeeze(0)


def conv2d_bsr(
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
    """``torch.ops.fastcompress.conv2d_bsr`` on a reference blob; the sums are those of float64, rounded to float32.

    Raises:
        TypeError, ValueError: bad arguments (see ``checks.check_conv2d``).
        PackedBlobError: the blob is corrupt or in another layout.
    """
    op = "conv2d_bsr"
    _, dtype = checks.check_conv2d(
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
    fields = decode_for(op, packed, op)
    weight = _conv2d_weight(op, fields, input, out_channels, kernel_size)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    top, bottom, left, right = padding
    padded = F.pad(batched.to(torch.float64), (left, right, top, bottom))
    sums = F.conv2d(padded, weight.to(torch.float64), stride=tuple(stride), dilation=tuple(dilation))
    bias = None if fields["bias"] is None else fields["bias"].view(-1, 1, 1)
    if residual is not None and residual.dim() == 3:
        residual = residual.unsqueeze(0)
    out = real_epilogue(sums, bias, residual, fields["activation"], dtype, out_scale, out_zero_point)
    out = out.contiguous(memory_format=memory_format(batched))
    return out if input.dim() == 4 else out.squeeze(0)
