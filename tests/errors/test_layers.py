"""What a layer says to input that it cannot take, and what it does with input that is merely unusual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastcompress.nn import QuantConv2d, QuantLinear
from fastcompress.ops import MAX_K
from tests.errors.expect import error

DTYPES = "allowed: float32, bfloat16, float16, uint8; convert it with .float()"
MOVE = "move one of them (layer.to(device) repacks a layer's weights)"


def _linear(mode: str = "dynamic") -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(10, 6), input_mode=mode, input_scale=0.02 if mode == "static" else 1.0)


def _conv() -> QuantConv2d:
    torch.manual_seed(0)
    return QuantConv2d.from_float(nn.Conv2d(4, 6, 3), input_mode="static", input_scale=0.02, input_zero_point=128)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.complex64])
def test_wrong_dtype(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with error(TypeError, f"linear_w8a8: `input` has dtype {name}, {DTYPES}"):
        _linear()(torch.ones(2, 10, dtype=dtype))
    with error(TypeError, f"conv2d_w8a8: `input` has dtype {name}, {DTYPES}"):
        _conv()(torch.ones(1, 4, 5, 5, dtype=dtype))


def test_not_a_tensor() -> None:
    with error(TypeError, "QuantLinear: `input` must be a torch.Tensor, got ndarray"):
        _linear()(np.ones((2, 10), np.float32))
    with error(TypeError, "QuantConv2d: `input` must be a torch.Tensor, got list"):
        _conv()([1.0])


def test_wrong_rank() -> None:
    with error(ValueError, "linear_w8a8: `input` must have at least one dimension ([..., in_features]), got a scalar"):
        _linear()(torch.tensor(1.0))
    with error(ValueError, "conv2d_w8a8: `input` must be [N, C, H, W] or [C, H, W], got shape [4, 5]"):
        _conv()(torch.ones(4, 5))
    with error(ValueError, "conv2d_w8a8: `input` must be [N, C, H, W] or [C, H, W], got shape [1, 1, 4, 5, 5]"):
        _conv()(torch.ones(1, 1, 4, 5, 5))


def test_wrong_channels() -> None:
    with error(ValueError, "QuantLinear: `input` has 11 features (shape [2, 11]), the layer takes in_features=10"):
        _linear()(torch.ones(2, 11))
    with error(ValueError, "QuantConv2d: `input` has 3 channels (shape [1, 3, 5, 5]), the layer takes in_channels=4"):
        _conv()(torch.ones(1, 3, 5, 5))


def test_transposed_input_of_the_wrong_shape_is_refused_not_reinterpreted() -> None:
    with error(ValueError, "QuantLinear: `input` has 3 features (shape [10, 3]), the layer takes in_features=10"):
        _linear()(torch.ones(3, 10).t())


def test_image_smaller_than_the_kernel() -> None:
    message = (
        "conv2d_w8a8: `input` of 2x5 pixels is smaller than the kernel: kernel_size [3, 3], padding [0, 0, 0, 0], "
        "dilation [1, 1]"
    )
    with error(ValueError, message):
        _conv()(torch.ones(1, 4, 2, 5))


def test_wrong_device() -> None:
    with error(ValueError, f"linear_w8a8: `packed` is on device cpu but `input` is on meta; {MOVE}"):
        _linear()(torch.ones(2, 10, device="meta"))
    with error(ValueError, f"conv2d_w8a8: `packed` is on device cpu but `input` is on meta; {MOVE}"):
        _conv()(torch.ones(1, 4, 5, 5, device="meta"))


def test_a_refused_call_changes_nothing() -> None:
    layer, x = _linear(), torch.ones(2, 10)
    want, blob = layer(x), layer.packed.clone()
    for bad in (torch.ones(2, 11), torch.ones(2, 10).double(), torch.ones(2, 10, device="meta")):
        with pytest.raises((TypeError, ValueError)):
            layer(bad)
    assert torch.equal(layer.packed, blob)
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 4)])
def test_empty_batch_gives_an_empty_result(lead: tuple[int, ...]) -> None:
    for mode in ("static", "dynamic", "dynamic_symmetric"):
        out = _linear(mode)(torch.ones(*lead, 10, dtype=torch.bfloat16))
        assert out.shape == (*lead, 6)
        assert out.dtype == torch.bfloat16
    assert _conv()(torch.ones(0, 4, 7, 5)).shape == (0, 6, 5, 3)


def test_non_contiguous_input_gives_the_same_result() -> None:
    x = torch.randn(7, 10)
    image = torch.randn(2, 4, 6, 5)
    for layer in (_linear("static"), _linear()):
        want = layer(x)
        assert torch.equal(layer(x.t().contiguous().t()), want)
        assert torch.equal(layer(torch.stack([x, x], 2)[:, :, 1]), want)
        assert torch.equal(layer(x[:1].expand(7, 10)), layer(x[:1]).expand(7, 6))
    want = _conv()(image)
    assert torch.equal(_conv()(image.transpose(2, 3).contiguous().transpose(2, 3)), want)
    assert torch.equal(_conv()(torch.stack([image, image], 4)[..., 0]), want)


def test_overlapping_windows_are_read_correctly() -> None:
    signal = torch.randn(40)
    windows = signal.as_strided((16, 10), (2, 1))
    assert torch.equal(_linear()(windows), _linear()(windows.clone()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["dynamic", "dynamic_symmetric"])
def test_dynamic_row_with_nan_or_infinity_is_all_nan_and_alone(mode: str, bad: float) -> None:
    layer, x = _linear(mode), torch.randn(5, 10)
    want = layer(x)
    x[3, 7] = bad
    out = layer(x)
    assert out[3].isnan().all()
    assert torch.equal(out[[0, 1, 2, 4]], want[[0, 1, 2, 4]])


def test_static_nan_counts_as_zero_and_infinity_saturates() -> None:
    layer = QuantLinear.from_float(nn.Linear(10, 6), input_mode="static", input_scale=0.02, input_zero_point=100)
    x = torch.randn(3, 10)
    for bad, stands_for in ((float("nan"), 0.0), (float("inf"), 1e30), (float("-inf"), -1e30)):
        spoiled, clean = x.clone(), x.clone()
        spoiled[1, 4], clean[1, 4] = bad, stands_for
        assert torch.equal(layer(spoiled), layer(clean))


def test_more_inputs_than_int32_can_sum() -> None:
    message = f"quantize_weight: `weight` has {MAX_K + 1} inputs per output, at most {MAX_K} keep int32 sums exact"
    with error(ValueError, message):
        QuantLinear.from_float(nn.Linear(MAX_K + 1, 2), input_mode="dynamic")
    assert QuantLinear.from_float(nn.Linear(MAX_K, 2), input_mode="dynamic")(torch.ones(1, MAX_K)).isfinite().all()


def test_weight_with_nan() -> None:
    broken = nn.Linear(10, 6)
    broken.weight.data[2, 3] = float("nan")
    with error(ValueError, "quantize_weight: `weight` holds NaN or infinity; repair the model before quantizing it"):
        QuantLinear.from_float(broken, input_mode="dynamic")


def test_training_the_weights_names_prepare() -> None:
    message = (
        "QuantLinear.requires_grad_(True): quantized weights are packed for the kernels, read-only and not trainable; "
        "train the float model, with fake quantization from fastcompress.prepare, and convert or quantize it again"
    )
    with error(RuntimeError, message):
        _linear().requires_grad_()


@pytest.mark.parametrize("byte", [0, 5, 40, 200, 255])
def test_damaged_header_is_refused_with_the_remedy(byte: int) -> None:
    layer = _linear()
    layer.packed = layer.packed.clone()
    layer.packed[byte] ^= 0x10
    with pytest.raises(RuntimeError, match=r"load the layer's state_dict|load the state_dict"):
        layer(torch.ones(1, 10))


def test_blob_of_another_family_is_refused() -> None:
    layer = _linear("static")
    layer.packed = QuantConv2d.from_float(nn.Conv2d(10, 6, 1), input_scale=0.02).packed  # the same 6x10 weights
    with pytest.raises((RuntimeError, ValueError), match="conv"):
        layer(torch.ones(1, 10))


def test_layer_packed_for_another_isa_is_refused_until_repacked(native: object) -> None:
    names = native.isa_supported()  # type: ignore[attr-defined]
    if len(names) < 2:
        pytest.skip("this machine supports one ISA only")
    native.set_isa(names[0])  # type: ignore[attr-defined]
    layer, x = _linear(), torch.randn(3, 10)
    want = layer(x)
    native.set_isa(names[1])  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError) as caught:
        layer(x)
    assert f"made for ISA '{names[0]}', this process runs '{names[1]}'" in str(caught.value)
    assert "layer.repack()" in str(caught.value)
    assert torch.equal(layer.repack()(x), want)
