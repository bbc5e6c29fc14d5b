"""The functions on raw buffers: every wrong argument is refused by name, nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

F, U, S, H, W16, I32 = np.float32, np.uint8, np.int8, np.float16, np.uint16, np.int32
X, OUT = np.ones((2, 10), F), np.zeros((2, 6), F)
WEIGHT, SCALE = np.ones((6, 10), S), np.ones(6, F)
IMAGE, PICTURE, KERNEL = np.ones((1, 5, 5, 3), F), np.zeros((1, 3, 3, 6), F), np.ones((6, 3, 3, 3), S)
ONE, NO_PAD = (1, 1), (0, 0, 0, 0)


def _pack(native: Any, mode: int = 1, weight: np.ndarray = WEIGHT) -> np.ndarray:
    return np.asarray(native.pack_w8a8(weight, SCALE, None, mode, 1.0, 0, 0))


LINEAR: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "x is float64": (TypeError, "x .*float64.*f32", {"x": X.astype(np.float64)}),
    "x is another dtype than said": (TypeError, "x .*float16.*f32", {"x": X.astype(H)}),
    "x has one dimension": (ValueError, r"x has shape \(10,\), expected \[rows, 10\]", {"x": X[0]}),
    "x has other features": (ValueError, r"x has shape \(2, 11\)", {"x": np.ones((2, 11), F)}),
    "x is transposed": (ValueError, "x .*not C-contiguous.*ascontiguousarray", {"x": np.ones((10, 2), F).T}),
    "x is sliced": (ValueError, "x .*not C-contiguous", {"x": np.ones((2, 20), F)[:, ::2]}),
    "x has the other byte order": (TypeError, "x ", {"x": X.astype(">f4")}),
    "x is no array": (TypeError, "x ", {"x": "text"}),
    "out has other rows": (ValueError, r"out has shape \(3, 6\), expected \[2, 6\]", {"out": np.zeros((3, 6), F)}),
    "out has other columns": (ValueError, r"out has shape \(2, 7\), expected \[2, 6\]", {"out": np.zeros((2, 7), F)}),
    "out has another dtype": (TypeError, "out .*uint8.*f32", {"out": np.zeros((2, 6), U)}),
    "out is transposed": (ValueError, "out .*not C-contiguous", {"out": np.zeros((6, 2), F).T}),
    "dtype is unknown": (ValueError, "dtype is 'f64'; allowed", {"dtype": "f64"}),
    "out_dtype is unknown": (ValueError, "out_dtype is 's4'; allowed", {"out_dtype": "s4"}),
    "residual has another shape": (ValueError, "residual has shape", {"residual": np.ones((2, 5), F)}),
    "residual is int32": (TypeError, "residual .*int32", {"residual": np.ones((2, 6), I32)}),
    "uint8 without parameters": (ValueError, "input_scale and input_zero_point", {"x": X.astype(U), "dtype": "u8"}),
    "scale without zero point": (
        ValueError,
        "input_scale and input_zero_point",
        {"x": X.astype(U), "dtype": "u8", "input_scale": np.ones(2, F)},
    ),
    "scale of another length": (
        ValueError,
        "input_scale has shape",
        {"x": X.astype(U), "dtype": "u8", "input_scale": np.ones(3, F), "input_zero_point": np.ones(2, I32)},
    ),
    "parameters for float input": (
        ValueError,
        "describe u8 input",
        {"input_scale": np.ones(2, F), "input_zero_point": np.ones(2, I32)},
    ),
    "out_scale is zero": (
        ValueError,
        "out_scale is .* it must be a positive",
        {"out": np.zeros((2, 6), U), "out_dtype": "u8", "out_scale": 0.0},
    ),
    "out_scale is NaN": (
        ValueError,
        "out_scale is .* it must be a positive",
        {"out": np.zeros((2, 6), S), "out_dtype": "s8", "out_scale": float("nan")},
    ),
    "out_zero_point of u8": (
        ValueError,
        r"out_zero_point 256 .*\[0, 255\]",
        {"out": np.zeros((2, 6), U), "out_dtype": "u8", "out_zero_point": 256},
    ),
    "out_zero_point of s8": (
        ValueError,
        r"out_zero_point -129 .*\[-128, 127\]",
        {"out": np.zeros((2, 6), S), "out_dtype": "s8", "out_zero_point": -129},
    ),
    "packed is float": (TypeError, "packed .*float32.*u8", {"packed": np.ones(1000, F)}),
    "packed is None": (TypeError, "packed", {"packed": None}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_refuses(native: Any, name: str) -> None:
    kind, message, changes = LINEAR[name]
    arguments = {"x": X, "packed": _pack(native), "out": OUT.copy()} | changes
    out: Any = arguments["out"]
    with pytest.raises(kind, match=message) as caught:
        native.linear_w8a8(**arguments)
    assert "linear_w8a8" in str(caught.value)
    assert not out.any()


def test_linear_refuses_a_read_only_output(native: Any) -> None:
    out = OUT.copy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="linear_w8a8: out is read-only"):
        native.linear_w8a8(X, _pack(native), out)
    assert not out.any()


CONV: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "other channels": (ValueError, "x has shape .*3 channels", {"x": np.ones((1, 5, 5, 4), F)}),
    "three dimensions": (ValueError, "x has shape .*4 dimensions", {"x": IMAGE[0]}),
    "stride zero": (ValueError, "stride", {"stride": (0, 1)}),
    "dilation zero": (ValueError, "dilation", {"dilation": (1, 0)}),
    "negative padding": (
        ValueError,
        "padding is -1, allowed: 0 to",
        {"padding": (-1, 0, 0, 0), "out": np.zeros((1, 2, 3, 6), F)},
    ),
    "padding of two": (TypeError, "padding", {"padding": (0, 0)}),
    "kernel larger than image": (ValueError, "kernel", {"x": IMAGE[:, :2].copy(), "out": np.zeros((1, 0, 3, 6), F)}),
    "layout": (ValueError, "layout is 'chwn'; allowed: 'nhwc', 'nchw'", {"layout": "chwn"}),
    "out shape": (ValueError, "out has shape", {"out": np.zeros((1, 3, 4, 6), F)}),
    "out in the other layout": (ValueError, "out has shape", {"out": np.zeros((1, 6, 3, 3), F)}),
    "x in the other layout": (ValueError, "x has shape", {"layout": "nchw"}),
}


@pytest.mark.parametrize("name", CONV)
def test_convolution_refuses(native: Any, name: str) -> None:
    kind, message, changes = CONV[name]
    arguments = {
        "x": IMAGE,
        "packed": _pack(native, 0, KERNEL),
        "out": PICTURE.copy(),
        "stride": ONE,
        "padding": NO_PAD,
        "dilation": ONE,
    } | changes
    out: Any = arguments["out"]
    with pytest.raises(kind, match=message) as caught:
        native.conv2d_w8a8(**arguments)
    assert "conv2d_w8a8" in str(caught.value)
    assert not out.any()


PACK: dict[str, tuple[type[Exception], str, tuple[Any, ...]]] = {
    "float weight": (TypeError, "weight .*float32", (WEIGHT.astype(F), SCALE, None, 0, 1.0, 0, 0)),
    "weight of one dimension": (ValueError, r"weight has shape \(10,\)", (WEIGHT[0], SCALE, None, 0, 1.0, 0, 0)),
    "transposed weight": (ValueError, "weight .*not C-contiguous", (np.ones((10, 6), S).T, SCALE, None, 0, 1.0, 0, 0)),
    "empty weight": (ValueError, "weight", (WEIGHT[:0], SCALE[:0], None, 0, 1.0, 0, 0)),
    "too few scales": (ValueError, "weight_scale has shape", (WEIGHT, SCALE[:5], None, 0, 1.0, 0, 0)),
    "float64 scales": (TypeError, "weight_scale .*float64", (WEIGHT, SCALE.astype(np.float64), None, 0, 1.0, 0, 0)),
    "scale is NaN": (ValueError, r"weight_scale\[0\]", (WEIGHT, SCALE * F(np.nan), None, 0, 1.0, 0, 0)),
    "scale is infinite": (ValueError, r"weight_scale\[0\]", (WEIGHT, SCALE * F(np.inf), None, 0, 1.0, 0, 0)),
    "scale is negative": (ValueError, r"weight_scale\[0\]", (WEIGHT, -SCALE, None, 0, 1.0, 0, 0)),
    "bias of another length": (ValueError, "bias has shape", (WEIGHT, SCALE, SCALE[:5], 0, 1.0, 0, 0)),
    "input mode": (ValueError, "input_mode is 4", (WEIGHT, SCALE, None, 4, 1.0, 0, 0)),
    "input mode of groups": (ValueError, "input_mode 3", (WEIGHT, SCALE, None, 3, 1.0, 0, 0)),
    "activation": (ValueError, "activation is 8", (WEIGHT, SCALE, None, 0, 1.0, 0, 8)),
    "groups of a matrix": (ValueError, "groups is 2", (WEIGHT, SCALE, None, 0, 1.0, 0, 0, 2)),
    "groups that do not divide": (ValueError, "groups", (KERNEL, SCALE, None, 0, 1.0, 0, 0, 4)),
    "input scale": (ValueError, "input_scale", (WEIGHT, SCALE, None, 0, 0.0, 0, 0)),
    "input zero point": (ValueError, "input_zero_point", (WEIGHT, SCALE, None, 0, 1.0, 256, 0)),
    "dynamic convolution": (ValueError, "convolutions", (KERNEL, SCALE, None, 1, 1.0, 0, 0)),
}


@pytest.mark.parametrize("name", PACK)
def test_packer_refuses(native: Any, name: str) -> None:
    kind, message, arguments = PACK[name]
    with pytest.raises(kind, match=message) as caught:
        native.pack_w8a8(*arguments)
    assert "pack_w8a8" in str(caught.value)


QUANTIZE: dict[str, tuple[type[Exception], str, str, Any]] = {
    "scale is NaN": (ValueError, "scale", "quantize_per_tensor", (X, np.zeros((2, 10), U), float("nan"), 0)),
    "scale is negative": (ValueError, "scale", "quantize_per_tensor", (X, np.zeros((2, 10), U), -1.0, 0)),
    "scale is subnormal": (ValueError, "scale", "quantize_per_tensor", (X, np.zeros((2, 10), U), 1e-40, 0)),
    "zero point of u8": (ValueError, "zero_point -1", "quantize_per_tensor", (X, np.zeros((2, 10), U), 1.0, -1)),
    "zero point of s8": (ValueError, "zero_point 128", "quantize_per_tensor", (X, np.zeros((2, 10), S), 1.0, 128)),
    "int32 out": (TypeError, "out .*int32", "quantize_per_tensor", (X, np.zeros((2, 10), I32), 1.0, 0)),
    "smaller out": (ValueError, "out has shape", "quantize_per_tensor", (X, np.zeros((2, 9), U), 1.0, 0)),
    "smaller out_q": (
        ValueError,
        "out_q has shape",
        "quantize_per_token",
        (X, np.zeros((2, 9), U), np.zeros(2, F), np.zeros(2, I32)),
    ),
    "longer out_scale": (
        ValueError,
        "out_scale has shape",
        "quantize_per_token",
        (X, np.zeros((2, 10), U), np.zeros(3, F), np.zeros(2, I32)),
    ),
    "shorter out_zero_point": (
        ValueError,
        "out_zero_point has shape",
        "quantize_per_token",
        (X, np.zeros((2, 10), U), np.zeros(2, F), np.zeros(1, I32)),
    ),
}


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantizers_refuse(native: Any, name: str) -> None:
    kind, message, function, arguments = QUANTIZE[name]
    with pytest.raises(kind, match=message) as caught:
        getattr(native, function)(*arguments)
    assert function in str(caught.value)
    assert not arguments[1].any()


def test_bf16_travels_as_uint16(native: Any) -> None:
    bits = (np.ones((2, 10), F).view(np.uint32) >> 16).astype(W16)
    got, want = OUT.copy(), OUT.copy()
    native.linear_w8a8(bits, _pack(native), got, dtype="bf16")
    native.linear_w8a8(X, _pack(native), want)
    assert np.array_equal(got, want)


def test_dlpack_tensors_are_taken_without_a_copy(native: Any) -> None:
    torch = pytest.importorskip("torch")
    out = torch.zeros(2, 6)
    native.linear_w8a8(torch.ones(2, 10), torch.from_numpy(_pack(native)), out)
    want = OUT.copy()
    native.linear_w8a8(X, _pack(native), want)
    assert np.array_equal(out.numpy(), want)
