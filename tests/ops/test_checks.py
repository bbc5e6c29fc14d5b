"""Bad arguments: the exception's type and its exact message, from reference and fake kernels alike."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcompress.errors import PackedBlobError
from fastcompress.ops import quantize_weight, reference, reference_layout
from tests.ops.cases import canonical_conv2d, canonical_linear

LINEAR = reference_layout.encode(canonical_linear())
DYNAMIC = reference_layout.encode(canonical_linear(input_mode="dynamic"))
CONV = reference_layout.encode(canonical_conv2d())
GEOMETRY = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
X, IMAGE = torch.zeros(3, 7), torch.zeros(1, 2, 5, 5)
U8 = torch.zeros(3, 7, dtype=torch.uint8)

#: Wrong whatever the blob holds: (operator, arguments, exception, exact message).
METADATA: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "quantize_per_tensor",
        {"input": X.double(), "scale": 1.0, "zero_point": 0, "dtype": torch.uint8},
        TypeError,
        "quantize_per_tensor: `input` has dtype float64, allowed: float32, bfloat16, float16; convert it with .float()",
    ),
    (
        "quantize_per_tensor",
        {"input": X, "scale": 1.0, "zero_point": 0, "dtype": torch.int32},
        TypeError,
        "quantize_per_tensor: `dtype` must be torch.uint8 or torch.int8, got torch.int32",
    ),
    (
        "quantize_per_tensor",
        {"input": X, "scale": 0.0, "zero_point": 0, "dtype": torch.uint8},
        ValueError,
        "quantize_per_tensor: `scale` must be positive, normal and finite in float32, got 0.0",
    ),
    (
        "quantize_per_tensor",
        {"input": X, "scale": 1e-39, "zero_point": 0, "dtype": torch.uint8},
        ValueError,
        "quantize_per_tensor: `scale` must be positive, normal and finite in float32, got 1e-39",
    ),
    (
        "quantize_per_tensor",
        {"input": X, "scale": 1.0, "zero_point": 128, "dtype": torch.int8},
        ValueError,
        "quantize_per_tensor: `zero_point` must lie in [-128, 127], got 128",
    ),
    (
        "quantize_per_token",
        {"input": torch.tensor(1.0)},
        ValueError,
        "quantize_per_token: `input` must have at least one dimension ([..., K]), got a scalar",
    ),
    (
        "quantize_per_token",
        {"input": X.int()},
        TypeError,
        "quantize_per_token: `input` has dtype int32, allowed: float32, bfloat16, float16; convert it with .float()",
    ),
    (
        "linear_w8a8",
        {"input": X.double(), "packed": LINEAR, "out_features": 5},
        TypeError,
        "linear_w8a8: `input` has dtype float64, allowed: float32, bfloat16, float16, uint8; convert it with .float()",
    ),
    (
        "linear_w8a8",
        {"input": torch.tensor(1.0), "packed": LINEAR, "out_features": 5},
        ValueError,
        "linear_w8a8: `input` must have at least one dimension ([..., in_features]), got a scalar",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR.int(), "out_features": 5},
        TypeError,
        "linear_w8a8: `packed` has dtype int32, allowed: uint8; pass what fastcompress.ops.packing.pack returned",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR[:256], "out_features": 5},
        ValueError,
        "linear_w8a8: `packed` must be one-dimensional with more than 256 bytes, got shape [256]; "
        "pass what fastcompress.ops.packing.pack returned",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 0},
        ValueError,
        "linear_w8a8: `out_features` must be at least 1, got 0",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 5, "out_dtype": torch.float64},
        TypeError,
        "linear_w8a8: `out_dtype` must be float32, bfloat16, float16, uint8, int8 or int32 (the accumulator), "
        "got torch.float64",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 5, "out_dtype": torch.uint8, "out_zero_point": -1},
        ValueError,
        "linear_w8a8: `out_zero_point` must lie in [0, 255], got -1",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 5, "residual": torch.zeros(5)},
        ValueError,
        "linear_w8a8: `residual` has shape [5], expected [3, 5] (the output's shape)",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 5, "residual": torch.zeros(3, 5).int()},
        TypeError,
        "linear_w8a8: `residual` has dtype int32, allowed: float32, bfloat16, float16; dequantize it first",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 5, "residual": torch.zeros(3, 5, device="meta")},
        ValueError,
        "linear_w8a8: `residual` is on device meta but `input` is on cpu; move one of them "
        "(layer.to(device) repacks a layer's weights)",
    ),
    (
        "linear_w8a8",
        {"input": U8, "packed": DYNAMIC, "out_features": 5, "input_scale": torch.ones(3)},
        ValueError,
        "linear_w8a8: `input_scale` and `input_zero_point` belong together; pass both or neither",
    ),
    (
        "linear_w8a8",
        {
            "input": X,
            "packed": DYNAMIC,
            "out_features": 5,
            "input_scale": torch.ones(3),
            "input_zero_point": torch.zeros(3).int(),
        },
        ValueError,
        "linear_w8a8: `input_scale`/`input_zero_point` describe uint8 input, but `input` has dtype torch.float32; "
        "leave them out",
    ),
    (
        "linear_w8a8",
        {
            "input": U8,
            "packed": DYNAMIC,
            "out_features": 5,
            "input_scale": torch.ones(2),
            "input_zero_point": torch.zeros(3).int(),
        },
        ValueError,
        "linear_w8a8: `input_scale` has shape [2], expected [3] (one per row of `input`)",
    ),
    (
        "conv2d_w8a8",
        {"input": X, "packed": CONV, "out_channels": 6, **GEOMETRY},
        ValueError,
        "conv2d_w8a8: `input` must be [N, C, H, W] or [C, H, W], got shape [3, 7]",
    ),
    (
        "conv2d_w8a8",
        {"input": IMAGE, "packed": CONV, "out_channels": 6, **GEOMETRY, "padding": [1, 1]},
        ValueError,
        "conv2d_w8a8: `padding` must be 4 integers >= 0 (top, bottom, left, right), got [1, 1]",
    ),
    (
        "conv2d_w8a8",
        {"input": IMAGE, "packed": CONV, "out_channels": 6, **GEOMETRY, "stride": [0, 1]},
        ValueError,
        "conv2d_w8a8: `stride` must be 2 integers >= 1 (vertical, horizontal), got [0, 1]",
    ),
    (
        "conv2d_w8a8",
        {"input": IMAGE, "packed": CONV, "out_channels": 6, **GEOMETRY, "dilation": [3, 3]},
        ValueError,
        "conv2d_w8a8: `input` of 5x5 pixels is smaller than the kernel: kernel_size [3, 3], padding [0, 0, 0, 0], "
        "dilation [3, 3]",
    ),
]

#: Wrong for this blob: only code that reads it can know.
CONTENT: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "linear_w8a8",
        {"input": torch.zeros(3, 8), "packed": LINEAR, "out_features": 5},
        ValueError,
        "linear_w8a8: `input` has 8 features (shape [3, 8]), the layer takes 7",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": LINEAR, "out_features": 4},
        ValueError,
        "linear_w8a8: `out_features` is 4, but `packed` holds 5",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": CONV, "out_features": 5},
        ValueError,
        "linear_w8a8: `packed` holds a conv2d_w8a8 layer, expected linear_w8a8",
    ),
    (
        "linear_w8a8",
        {"input": U8, "packed": DYNAMIC, "out_features": 5},
        ValueError,
        "linear_w8a8: `input` is uint8 and the layer's input mode is dynamic: pass `input_scale` and "
        "`input_zero_point` from quantize_per_token",
    ),
    (
        "conv2d_w8a8",
        {"input": torch.zeros(1, 3, 5, 5), "packed": CONV, "out_channels": 6, **GEOMETRY},
        ValueError,
        "conv2d_w8a8: `input` has 3 channels (shape [1, 3, 5, 5]), the layer takes 2",
    ),
    (
        "conv2d_w8a8",
        {"input": IMAGE, "packed": CONV, "out_channels": 6, **GEOMETRY, "kernel_size": [1, 3]},
        ValueError,
        "conv2d_w8a8: `out_channels` 6 and `kernel_size` [1, 3] do not fit `packed`, which holds 6 channels of [3, 3]",
    ),
    (
        "linear_w8a8",
        {"input": X, "packed": torch.zeros(400, dtype=torch.uint8), "out_features": 5},
        PackedBlobError,
        "packed blob: not in the reference layout (packed for other kernels, or no blob at all); "
        "make it again from the canonical tensors (layer.repack(), or load the state_dict)",
    ),
]


@pytest.mark.parametrize(("op", "arguments", "error", "message"), METADATA + CONTENT)
def test_reference(op: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        getattr(reference, op)(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == message


@pytest.mark.parametrize(("op", "arguments", "error", "message"), METADATA)
def test_fake(op: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    if "device meta" in message:
        pytest.skip("fake tensor mode itself rejects mixed devices")
    with FakeTensorMode() as mode:
        fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        with pytest.raises(error) as caught:
            getattr(torch.ops.fastcompress, op)(**fakes)
    assert str(caught.value) == message


@pytest.mark.parametrize(("op", "arguments", "error", "message"), METADATA + CONTENT)
def test_operator_refuses_too(op: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """Native kernels cannot raise TypeError: they say RuntimeError there; layers restore the types (tests/nn)."""
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        getattr(torch.ops.fastcompress, op)(**arguments)


@pytest.mark.parametrize(
    ("weight", "scale", "error", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.int8),
            None,
            TypeError,
            "quantize_weight: `weight` must be floating point, got int8",
        ),
        (
            torch.zeros(3),
            None,
            ValueError,
            "quantize_weight: `weight` must be [out, in] or [out, in/groups, kh, kw] with no "
            "empty dimension, got shape [3]",
        ),
        (
            torch.zeros(1, 65_794),
            None,
            ValueError,
            "quantize_weight: `weight` has 65794 inputs per output, at most 65793 keep int32 sums exact",
        ),
        (
            torch.tensor([[float("nan")]]),
            None,
            ValueError,
            "quantize_weight: `weight` holds NaN or infinity; repair the model before quantizing it",
        ),
        (
            torch.ones(2, 2),
            torch.tensor([1.0, 0.0]),
            ValueError,
            "quantize_weight: `scale` must be positive, normal and finite, got 0.0 at output channel 1",
        ),
        (
            torch.ones(2, 2),
            torch.ones(3),
            ValueError,
            "quantize_weight: `scale` has shape [3], expected [2] (one scale per output channel)",
        ),
    ],
)
def test_quantize_weight_refuses(weight: torch.Tensor, scale: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        quantize_weight(weight, scale)
    assert str(caught.value) == message


def test_quantize_weight_values() -> None:
    q, scale = quantize_weight(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    assert q.tolist() == [[64, -127, 32], [0, 0, 0]]  # 63.5 and 31.75: half goes to even
    assert scale[0] == torch.tensor(2.0) / 127
    assert scale[1] == torch.tensor(2.0**-100) / 127
    q, _ = quantize_weight(torch.tensor([[1.0, -3.0]]), torch.tensor([0.01]))
    assert q.tolist() == [[100, -127]]
