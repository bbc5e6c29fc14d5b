"""What the native operators say to arguments they cannot take; layers turn some of it into TypeError (tests/nn)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcompress.ops import W8A8Canonical, pack

ops = torch.ops.fastcompress
GEOMETRY = ((3, 3), (1, 1), (0, 0, 0, 0), (1, 1))


def _layer(*shape: int) -> Tensor:
    mode = "dynamic" if len(shape) == 2 else "static"
    weight = torch.ones(shape, dtype=torch.int8)
    return pack(W8A8Canonical(weight, torch.ones(shape[0]), None, mode, 1.0, 0, "none", 1))


def test_a_blob_of_the_other_family_is_named_first(native: Any) -> None:
    with pytest.raises(ValueError, match="linear_w8a8: the packed weights belong to a convolution"):
        ops.linear_w8a8(torch.ones(2, 10), _layer(6, 3, 3, 3), 7)
    with pytest.raises(ValueError, match="conv2d_w8a8: the packed weights belong to a linear layer"):
        ops.conv2d_w8a8(torch.ones(1, 3, 5, 5), _layer(6, 10), 7, *GEOMETRY)


@pytest.mark.parametrize("wide", [2**32 + 5, -(2**32) + 5, 2**40])
def test_zero_points_are_checked_before_they_are_narrowed(native: Any, wide: int) -> None:
    x = torch.ones(2, 10)
    for dtype, limits in ((torch.uint8, r"\[0, 255\]"), (torch.int8, r"\[-128, 127\]")):
        outside = f"zero_point {wide} is outside the output type's range {limits}"
        with pytest.raises(ValueError, match=f"quantize_per_tensor: {outside}"):
            ops.quantize_per_tensor(x, 1.0, wide, dtype)
        with pytest.raises(ValueError, match=f"linear_w8a8: out_{outside}"):
            ops.linear_w8a8(x, _layer(6, 10), 6, out_dtype=dtype, out_zero_point=wide)
        with pytest.raises(ValueError, match=f"conv2d_w8a8: out_{outside}"):
            ops.conv2d_w8a8(
                torch.ones(1, 3, 5, 5), _layer(6, 3, 3, 3), 6, *GEOMETRY, out_dtype=dtype, out_zero_point=wide
            )


@pytest.mark.parametrize("shape", [(), (6,), (3, 6), (1, 2, 6), (6, 2)])
def test_linear_residual_of_another_shape(native: Any, shape: tuple[int, ...]) -> None:
    text = re.escape(f"residual has shape {list(shape)}, the output has [2, 6]")
    with pytest.raises(ValueError, match=f"linear_w8a8: {text}"):
        ops.linear_w8a8(torch.ones(2, 10), _layer(6, 10), 6, torch.ones(shape))


@pytest.mark.parametrize("shape", [(), (6,), (6, 3), (2, 6, 3, 3), (1, 1, 6, 3, 3)])
@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_residual_of_another_rank(
    native: Any, shape: tuple[int, ...], batch: int | None, channels_last: bool
) -> None:
    x = torch.ones(1, 3, 5, 5)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x = x if batch else x[0]
    out = [6, 3, 3] if batch is None else [batch, 6, 3, 3]
    text = re.escape(f"residual has shape {list(shape)}, the output has {out}")
    with pytest.raises(ValueError, match=f"conv2d_w8a8: {text}"):
        ops.conv2d_w8a8(x, _layer(6, 3, 3, 3), 6, *GEOMETRY, torch.ones(shape))


def test_dtype_errors_list_what_the_argument_allows(native: Any) -> None:
    x, packed = torch.ones(2, 10), _layer(6, 10)
    floats = "float32, bfloat16, float16"
    for argument, came, allowed, call in (
        ("input", "int64", f"{floats}, uint8", lambda: ops.linear_w8a8(x.long(), packed, 6)),
        ("out_dtype", "float64", f"{floats}, uint8, int8, int32",
         lambda: ops.linear_w8a8(x, packed, 6, out_dtype=torch.float64)),
        ("residual", "uint8", floats, lambda: ops.linear_w8a8(x, packed, 6, torch.ones(2, 6, dtype=torch.uint8))),
        ("packed", "int8", "uint8", lambda: ops.linear_w8a8(x, packed.view(torch.int8), 6)),
        ("input_zero_point", "int64", "int32",
         lambda: ops.linear_w8a8(x.byte(), packed, 6, input_scale=x[:, 0], input_zero_point=x[:, 0].long())),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=rf"linear_w8a8: {argument} has dtype {came}, allowed: {allowed}($|;)"):
            call()
    with pytest.raises(RuntimeError, match=f"quantize_per_token: input has dtype uint8, allowed: {floats}$"):
        ops.quantize_per_token(x.byte())
    with pytest.raises(RuntimeError, match=r"quantize_per_tensor: dtype has dtype int32, allowed: uint8, int8$"):
        ops.quantize_per_tensor(x, 1.0, 0, torch.int32)


def test_operators_say_what_came(native: Any) -> None:
    x, image = torch.ones(2, 10), torch.ones(1, 3, 5, 5)
    linear, conv = _layer(6, 10), _layer(6, 3, 3, 3)
    for message, call in (
        ("linear_w8a8: out_features is 7, the packed weights have 6", lambda: ops.linear_w8a8(x, linear, 7)),
        ("linear_w8a8: input has shape [2, 9], ", lambda: ops.linear_w8a8(x[:, :9], linear, 6)),
        ("linear_w8a8: packed has shape [2, 4], it must be 1-D", lambda: ops.linear_w8a8(x, linear[:8].view(2, 4), 6)),
        ("linear_w8a8: input_scale came without input_zero_point",
         lambda: ops.linear_w8a8(x.byte(), linear, 6, input_scale=x[:, 0])),
        ("input has dtype float32; leave them out",
         lambda: ops.linear_w8a8(x, linear, 6, input_scale=x[:, 0], input_zero_point=x[:, 0].int())),
        ("input_scale has shape [10] and input_zero_point [2], they need one value per row of input (2)",
         lambda: ops.linear_w8a8(x.byte(), linear, 6, input_scale=x[0], input_zero_point=x[:, 0].int())),
        ("conv2d_w8a8: padding (top, bottom, left, right) takes 4 numbers, got [0, 0]",
         lambda: ops.conv2d_w8a8(image, conv, 6, (3, 3), (1, 1), (0, 0), (1, 1))),
        ("kernel_size [3, 2], the packed weights have 6 and [3, 3]",
         lambda: ops.conv2d_w8a8(image, conv, 6, (3, 2), *GEOMETRY[1:])),
        ("conv2d_w8a8: stride [0, 1] and dilation [1, 1] must be positive",
         lambda: ops.conv2d_w8a8(image, conv, 6, (3, 3), (0, 1), *GEOMETRY[2:])),
        ("input of shape [1, 3, 2, 5] is smaller than the kernel: kernel_size [3, 3], padding [0, 0, 0, 0]",
         lambda: ops.conv2d_w8a8(image[:, :, :2], conv, 6, *GEOMETRY)),
        ("quantize_per_token: input is a scalar", lambda: ops.quantize_per_token(torch.tensor(1.0))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
