"""What operators accept: one set of checks for the fake kernels, the reference kernels and the layers.

Nothing here reads a value of an activation or of a packed blob, so everything runs on fake tensors too.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .constants import MAX_K

__all__ = [
    "FLOATS",
    "HEADER_BYTES",
    "check_conv2d",
    "check_linear",
    "check_packed",
    "check_parameters",
    "check_quantize_per_tensor",
    "check_quantize_per_token",
    "check_scale",
    "check_tensor",
    "check_weight",
    "conv_output_size",
    "float32_of",
]

#: Activation dtypes of the float paths.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: Every packed blob starts with this many bytes of header.
HEADER_BYTES = 256
_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
_SMALLEST_NORMAL = 2.0**-126


def float32_of(value: float) -> float:
    """`value` rounded to float32 (overflow gives an infinity), as a Python float."""
    return float(torch.tensor(value, dtype=torch.float64).to(torch.float32))


def check_tensor(op: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: `{name}` must be a torch.Tensor, got {type(value).__name__}")


def _expect_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype], remedy: str) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: `{name}` has dtype {got}, allowed: {names}; {remedy}")


def _expect_device(op: str, name: str, tensor: Tensor, input: Tensor, other: str = "input") -> None:
    if tensor.device != input.device:
        raise ValueError(
            f"{op}: `{name}` is on device {tensor.device} but `{other}` is on {input.device}; move one of them "
            "(layer.to(device) repacks a layer's weights)"
        )


def _expect_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int], why: str) -> None:
    if tensor.dim() != len(shape) or any(a != b for a, b in zip(tensor.shape, shape, strict=True)):
        raise ValueError(f"{op}: `{name}` has shape {list(tensor.shape)}, expected {list(shape)} ({why})")


def check_parameters(op: str, prefix: str, scale: float, zero_point: int, low: int, high: int) -> None:
    """Check a per-tensor scale (positive, normal, finite as float32) and zero point (in ``[low, high]``).

    Raises:
        ValueError: either is out of range.
    """
    rounded = float32_of(scale)
    if not (_SMALLEST_NORMAL <= rounded < math.inf):
        raise ValueError(f"{op}: `{prefix}scale` must be positive, normal and finite in float32, got {scale!r}")
    if not low <= zero_point <= high:
        raise ValueError(f"{op}: `{prefix}zero_point` must lie in [{low}, {high}], got {zero_point}")


def check_scale(op: str, name: str, scale: Tensor, length: int) -> Tensor:
    """Check a per-channel scale: float32 ``[length]``, every element positive, normal and finite; returns it."""
    check_tensor(op, name, scale)
    _expect_dtype(op, name, scale, (torch.float32,), "convert it with .float()")
    _expect_shape(op, name, scale, [length], "one scale per output channel")
    good = (scale >= _SMALLEST_NORMAL) & (scale < math.inf)
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        raise ValueError(
            f"{op}: `{name}` must be positive, normal and finite, got {scale[index].item()!r} at output channel {index}"
        )
    return scale


def check_weight(op: str, weight: Tensor) -> Tensor:
    """Check a float weight ``[out, in]`` or ``[out, in/groups, kh, kw]`` with finite values; returns it."""
    check_tensor(op, "weight", weight)
    if not weight.is_floating_point():
        raise TypeError(f"{op}: `weight` must be floating point, got {str(weight.dtype).removeprefix('torch.')}")
    if weight.dim() not in (2, 4) or 0 in weight.shape:
        raise ValueError(
            f"{op}: `weight` must be [out, in] or [out, in/groups, kh, kw] with no empty dimension, "
            f"got shape {list(weight.shape)}"
        )
    k = weight[0].numel()
    if k > MAX_K:
        raise ValueError(f"{op}: `weight` has {k} inputs per output, at most {MAX_K} keep int32 sums exact")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{op}: `weight` holds NaN or infinity; repair the model before quantizing it")
    return weight


def check_quantize_per_tensor(input: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> None:
    """Check the arguments of ``quantize_per_tensor``; raises TypeError or ValueError."""
    op = "quantize_per_tensor"
    _expect_dtype(op, "input", input, FLOATS, "convert it with .float()")
    if dtype not in _RANGES:
        raise TypeError(f"{op}: `dtype` must be torch.uint8 or torch.int8, got {dtype}")
    check_parameters(op, "", scale, zero_point, *_RANGES[dtype])


def check_quantize_per_token(input: Tensor) -> None:
    """Check the arguments of ``quantize_per_token``; raises TypeError or ValueError."""
    op = "quantize_per_token"
    _expect_dtype(op, "input", input, FLOATS, "convert it with .float()")
    if input.dim() < 1:
        raise ValueError(f"{op}: `input` must have at least one dimension ([..., K]), got a scalar")


def _has_float_sums(op: str) -> bool:
    """Whether an operator takes floats only and has no int32 sums: its weights are floats, or scaled by groups."""
    return op.endswith(("_bsr", "_w4", "_w8"))


def _check_output(
    op: str,
    input: Tensor,
    shape: Sequence[int],
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    out_scale: float,
    out_zero_point: int,
) -> torch.dtype:
    if out_dtype is None:
        out_dtype = torch.float32 if input.dtype == torch.uint8 else input.dtype
    if out_dtype in _RANGES:
        check_parameters(op, "out_", out_scale, out_zero_point, *_RANGES[out_dtype])
    elif out_dtype == torch.int32 and _has_float_sums(op):
        raise TypeError(f"{op}: `out_dtype` is int32, but these weights have no int32 accumulator; use torch.float32")
    elif out_dtype not in (*FLOATS, torch.int32):
        raise TypeError(
            f"{op}: `out_dtype` must be float32, bfloat16, float16, uint8, int8 or int32 (the accumulator), "
            f"got {out_dtype}"
        )
    if residual is not None:
        if out_dtype == torch.int32:
            raise ValueError(f"{op}: `residual` cannot be added to the int32 accumulator; choose another `out_dtype`")
        _expect_dtype(op, "residual", residual, FLOATS, "dequantize it first")
        _expect_device(op, "residual", residual, input)
        _expect_shape(op, "residual", residual, shape, "the output's shape")
    return out_dtype


def _check_input(op: str, input: Tensor) -> None:
    allowed = FLOATS if _has_float_sums(op) else (*FLOATS, torch.uint8)
    _expect_dtype(op, "input", input, allowed, "convert it with .float()")


def check_packed(op: str, packed: Tensor, input: Tensor, name: str = "input") -> None:
    """Check that `packed` can be a blob on the device of `input`, the argument `name`; raises TypeError, ValueError."""
    _expect_dtype(op, "packed", packed, (torch.uint8,), "pass what fastcompress.ops.packing.pack returned")
    if packed.dim() != 1 or packed.shape[0] <= HEADER_BYTES:
        raise ValueError(
            f"{op}: `packed` must be one-dimensional with more than {HEADER_BYTES} bytes, got shape "
            f"{list(packed.shape)}; pass what fastcompress.ops.packing.pack returned"
        )
    _expect_device(op, "packed", packed, input, name)


def check_linear(
    input: Tensor,
    packed: Tensor,
    out_features: int,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    *,
    op: str = "linear_w8a8",
) -> tuple[list[int], torch.dtype]:
    """Check the arguments of ``linear_w8a8`` or ``linear_bsr``.

    Returns the output's shape and dtype, raises TypeError or ValueError.
    """
    _check_input(op, input)
    if input.dim() < 1:
        raise ValueError(f"{op}: `input` must have at least one dimension ([..., in_features]), got a scalar")
    check_packed(op, packed, input)
    if out_features < 1:
        raise ValueError(f"{op}: `out_features` must be at least 1, got {out_features}")
    if (input_scale is None) != (input_zero_point is None):
        raise ValueError(f"{op}: `input_scale` and `input_zero_point` belong together; pass both or neither")
    if input_scale is not None and input_zero_point is not None:
        if input.dtype != torch.uint8:
            raise ValueError(
                f"{op}: `input_scale`/`input_zero_point` describe uint8 input, but `input` has dtype {input.dtype}; "
                "leave them out"
            )
        tokens = (("input_scale", input_scale, torch.float32), ("input_zero_point", input_zero_point, torch.int32))
        for name, tensor, dtype in tokens:
            _expect_dtype(op, name, tensor, (dtype,), "pass what quantize_per_token returned")
            _expect_device(op, name, tensor, input)
            _expect_shape(op, name, tensor, input.shape[:-1], "one per row of `input`")
    shape = [*input.shape[:-1], out_features]
    return shape, _check_output(op, input, shape, residual, out_dtype, out_scale, out_zero_point)


def conv_output_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Output length of a convolution along one axis, in pixels; below 1 when the kernel does not fit."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def check_conv2d(
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
    *,
    op: str = "conv2d_w8a8",
) -> tuple[list[int], torch.dtype]:
    """Check the arguments of ``conv2d_w8a8`` or ``conv2d_bsr``.

    Returns the output's shape and dtype, raises TypeError or ValueError.
    """
    _check_input(op, input)
    if input.dim() not in (3, 4):
        raise ValueError(f"{op}: `input` must be [N, C, H, W] or [C, H, W], got shape {list(input.shape)}")
    check_packed(op, packed, input)
    if out_channels < 1:
        raise ValueError(f"{op}: `out_channels` must be at least 1, got {out_channels}")
    geometry = (("kernel_size", kernel_size, 2, 1), ("stride", stride, 2, 1), ("dilation", dilation, 2, 1))
    for name, values, length, least in (*geometry, ("padding", padding, 4, 0)):
        if len(values) != length or min(values) < least:
            meaning = "(top, bottom, left, right)" if name == "padding" else "(vertical, horizontal)"
            raise ValueError(f"{op}: `{name}` must be {length} integers >= {least} {meaning}, got {list(values)}")
    height = conv_output_size(input.shape[-2], kernel_size[0], stride[0], padding[0], padding[1], dilation[0])
    width = conv_output_size(input.shape[-1], kernel_size[1], stride[1], padding[2], padding[3], dilation[1])
    if height < 1 or width < 1:
        raise ValueError(
            f"{op}: `input` of {input.shape[-2]}x{input.shape[-1]} pixels is smaller than the kernel: kernel_size "
            f"{list(kernel_size)}, padding {list(padding)}, dilation {list(dilation)}"
        )
    shape = [*input.shape[:-3], out_channels, height, width]
    return shape, _check_output(op, input, shape, residual, out_dtype, out_scale, out_zero_point)
