"""QuantLinear and QuantConv2d as replacements: construction, results, geometry, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcompress.nn import QuantConv2d, QuantLinear
from fastcompress.ops import quantize_weight
from tests import oracles
from tests.ops.cases import canonical_conv2d, canonical_linear, rng


def make_linear(mode: str = "dynamic", seed: int = 0, **kwargs: Any) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(seed)
    float_layer = nn.Linear(24, 10)
    if mode == "static":
        kwargs = {"input_scale": 0.03, "input_zero_point": 128, **kwargs}
    return float_layer, QuantLinear.from_float(float_layer, input_mode=mode, **kwargs)


def make_conv2d(**kwargs: Any) -> tuple[nn.Conv2d, QuantConv2d]:
    torch.manual_seed(1)
    float_layer = nn.Conv2d(4, 6, 3, **kwargs)
    return float_layer, QuantConv2d.from_float(float_layer, input_mode="static", input_scale=0.03, input_zero_point=128)


@pytest.mark.parametrize("mode", ["dynamic", "dynamic_symmetric", "static"])
def test_linear_result_is_the_oracle_s(mode: str) -> None:
    float_layer, layer = make_linear(mode, activation="relu")
    x = torch.randn(2, 3, 24, generator=rng(2))
    rows = x.reshape(-1, 24).numpy()
    if mode == "static":
        q = oracles.quantize_per_tensor(rows, layer.input_scale, 128)
        scale, zero = np.full(6, layer.input_scale), np.full(6, 128)
    else:
        q, scale, zero = oracles.quantize_per_token(rows, mode == "dynamic_symmetric")
    weight, weight_scale = quantize_weight(float_layer.weight)
    acc = oracles.linear_acc(q, zero, weight.numpy())
    epilogue = oracles.Epilogue(weight_scale.numpy(), float_layer.bias.detach().numpy())
    expected = oracles.activate32(oracles.pre_activation(acc, scale, epilogue), "relu")
    np.testing.assert_array_equal(layer(x).numpy().reshape(-1, 10), expected)


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1), "groups": 2, "bias": False},
        {"padding": "same", "dilation": (1, 2)},
        {"padding": "valid"},
    ],
)
def test_conv2d_equals_the_float_layer_on_dequantized_operands(geometry: dict[str, Any]) -> None:
    float_layer, layer = make_conv2d(**geometry)
    x = torch.randint(0, 256, (2, 4, 9, 8), generator=rng(3), dtype=torch.uint8)
    real = (x.double() - layer.input_zero_point) * layer.input_scale
    exact = float_layer.double()
    exact.weight.data = layer.canonical().dequantize().double()
    expected = exact(real).detach()
    got = layer(x)
    assert got.shape == expected.shape
    # both sums are of the same numbers; the layer rounds scale, product and bias to float32: three steps of 2^-24
    assert (got.double() - expected).abs().max() <= 4 * 2.0**-24 * (expected.abs().max() + 1)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "dilation",
        "groups",
        "padding",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(float_layer, name), name


def test_asymmetric_padding() -> None:
    float_layer, _ = make_conv2d()
    layer = QuantConv2d.from_float(float_layer, input_mode="static", input_scale=0.05, padding=(0, 1, 2, 3))
    assert layer.padding == layer.padding4 == (0, 1, 2, 3)
    x = torch.randn(1, 4, 6, 6, generator=rng(4))
    plain = QuantConv2d.from_float(float_layer, input_mode="static", input_scale=0.05)
    assert torch.equal(layer(x), plain(nn.functional.pad(x, (2, 3, 0, 1))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_has_the_input_s_dtype(dtype: torch.dtype) -> None:
    assert make_linear()[1](torch.randn(3, 24).to(dtype)).dtype == dtype
    assert make_conv2d()[1](torch.randn(1, 4, 5, 5).to(dtype)).dtype == dtype


def test_images_keep_their_memory_format() -> None:
    _, layer = make_conv2d(padding=1)
    x = torch.randn(2, 4, 6, 6, generator=rng(5))
    y, last = layer(x), layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, last)
    assert torch.equal(layer(x[0]), y[0])


def test_attributes_of_a_linear_layer() -> None:
    float_layer, layer = make_linear("static", activation="gelu")
    assert (layer.in_features, layer.out_features) == (float_layer.in_features, float_layer.out_features)
    assert (layer.activation, layer.input_mode, layer.input_zero_point) == ("gelu", "static", 128)
    assert layer.input_scale == torch.tensor(0.03).item()
    assert list(dict(layer.named_buffers())) == ["packed"]
    assert list(layer.parameters()) == []
    assert layer.kernel_name().startswith("linear_w8a8_")


def test_repr_tells_the_configuration() -> None:
    assert repr(make_linear("static", activation="gelu")[1]) == (
        "QuantLinear(in_features=24, out_features=10, bias=True, input_mode='static', input_scale=0.03, "
        "input_zero_point=128, activation='gelu')"
    )
    assert repr(make_conv2d(padding=1, groups=2, bias=False)[1]) == (
        "QuantConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=2, bias=False, "
        "input_mode='static', input_scale=0.03, input_zero_point=128)"
    )


def test_given_weight_scales_are_used() -> None:
    scale = torch.full((10,), 0.01)
    _, layer = make_linear(weight_scale=scale)
    assert torch.equal(layer.canonical().weight_scale, scale)


def test_training_mode_is_kept() -> None:
    assert make_linear()[1].training
    assert not QuantLinear.from_float(nn.Linear(3, 3).eval(), input_mode="dynamic").training


def test_empty_batches() -> None:
    assert make_linear()[1](torch.empty(0, 24)).shape == (0, 10)
    assert make_conv2d()[1](torch.empty(0, 4, 5, 5)).shape == (0, 6, 3, 3)


def test_gradient_reaches_the_layers_before() -> None:
    _, layer = make_linear()
    x = torch.randn(3, 24, generator=rng(6), requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    expected = layer.dequantize().sum(0).expand(3, 24)
    torch.testing.assert_close(x.grad, expected)
    _, conv = make_conv2d()
    image = torch.randn(1, 4, 5, 5, generator=rng(7), requires_grad=True)
    conv(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_no_gradient_when_none_is_wanted() -> None:
    _, layer = make_linear()
    x = torch.randn(3, 24, requires_grad=True)
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x).is_inference()
    assert not layer(x.detach()).requires_grad


LINEAR_ERRORS: list[tuple[Any, type[Exception], str]] = [
    (
        torch.zeros(3, 24).double(),
        TypeError,
        "linear_w8a8: `input` has dtype float64, allowed: float32, bfloat16, float16, uint8; convert it with .float()",
    ),
    (
        torch.zeros(3, 23),
        ValueError,
        "QuantLinear: `input` has 23 features (shape [3, 23]), the layer takes in_features=24",
    ),
    (
        torch.tensor(1.0),
        ValueError,
        "linear_w8a8: `input` must have at least one dimension ([..., in_features]), got a scalar",
    ),
    (
        torch.zeros(3, 24, device="meta"),
        ValueError,
        "linear_w8a8: `packed` is on device cpu but `input` is on meta; move one of them (layer.to(device) repacks a "
        "layer's weights)",
    ),
    ([1.0] * 24, TypeError, "QuantLinear: `input` must be a torch.Tensor, got list"),
    (
        torch.zeros(3, 24, dtype=torch.uint8),
        ValueError,
        "QuantLinear: `input` is uint8, but input_mode='dynamic' quantizes floats itself; pass the float tensor",
    ),
]


@pytest.mark.parametrize(("x", "error", "message"), LINEAR_ERRORS)
@pytest.mark.parametrize("grad", [False, True])
def test_linear_refuses(x: Any, error: type[Exception], message: str, grad: bool) -> None:
    _, layer = make_linear()
    before = layer.packed.clone()
    if grad and isinstance(x, torch.Tensor) and x.is_floating_point():
        x = x.clone().requires_grad_()
    with pytest.raises(error) as caught:
        layer(x)
    assert type(caught.value) is error
    assert str(caught.value) == message
    assert torch.equal(layer.packed, before)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(1, 3, 5, 5),
            ValueError,
            "QuantConv2d: `input` has 3 channels (shape [1, 3, 5, 5]), the layer takes in_channels=4",
        ),
        (torch.zeros(4, 5), ValueError, "conv2d_w8a8: `input` must be [N, C, H, W] or [C, H, W], got shape [4, 5]"),
        (
            torch.zeros(1, 4, 5, 5).int(),
            TypeError,
            "conv2d_w8a8: `input` has dtype int32, allowed: float32, bfloat16, float16, uint8; "
            "convert it with .float()",
        ),
        (
            torch.zeros(1, 4, 2, 5),
            ValueError,
            "conv2d_w8a8: `input` of 2x5 pixels is smaller than the kernel: kernel_size "
            "[3, 3], padding [0, 0, 0, 0], dilation [1, 1]",
        ),
        (None, TypeError, "QuantConv2d: `input` must be a torch.Tensor, got NoneType"),
    ],
)
def test_conv2d_refuses(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make_conv2d()[1](x)
    assert type(caught.value) is error
    assert str(caught.value) == message


class _OwnForward(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class _OwnPadding(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(input, (1, 2, 1, 2)))


def test_from_float_refuses_what_it_cannot_reproduce() -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Linear with nn\.Linear's forward, got _OwnForward"):
        QuantLinear.from_float(_OwnForward(3, 3), input_mode="dynamic")
    with pytest.raises(TypeError, match=r"must be an nn\.Linear with nn\.Linear's forward, got Conv2d"):
        QuantLinear.from_float(nn.Conv2d(3, 3, 1), input_mode="dynamic")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pass `padding` \(top, bottom, left, right\)"):
        QuantConv2d.from_float(_OwnPadding(3, 3, 3), input_scale=0.1)
    assert QuantConv2d.from_float(_OwnPadding(3, 3, 3), input_scale=0.1, padding=(1, 2, 1, 2)).padding4 == (1, 2, 1, 2)
    with pytest.raises(ValueError, match="padding_mode` must be 'zeros', got 'reflect'"):
        QuantConv2d.from_float(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), input_scale=0.1)
    with pytest.raises(TypeError, match=r"`module` must be an nn\.Conv2d"):
        QuantConv2d.from_float(nn.ConvTranspose2d(3, 3, 3), input_scale=0.1)  # type: ignore[arg-type]
    broken = nn.Linear(3, 3)
    broken.weight.data[1, 1] = float("inf")
    with pytest.raises(ValueError, match="`weight` holds NaN or infinity; repair the model"):
        QuantLinear.from_float(broken, input_mode="dynamic")


def test_from_canonical_refuses_bad_geometry() -> None:
    with pytest.raises(ValueError, match=r"QuantLinear: `weight` must be \[out, in\], got shape \[6, 2, 3, 3\]"):
        QuantLinear.from_canonical(canonical_conv2d())
    with pytest.raises(
        ValueError, match=r"QuantConv2d: `weight` must be \[out, in/groups, kh, kw\], got shape \[5, 7\]"
    ):
        QuantConv2d.from_canonical(canonical_linear())
    for geometry, message in [
        ({"stride": 0}, "`stride` must be one or two integers >= 1, got 0"),
        ({"dilation": (1, 2, 3)}, "`dilation` must be one or two integers >= 1"),
        ({"padding": -1}, "`padding` must be one or two integers >= 0, got -1"),
        ({"padding": (0, 0, 0, -1)}, "`padding` must not be negative"),
        ({"padding": "same", "stride": 2}, r"\"same\" \(with stride 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            QuantConv2d.from_canonical(canonical_conv2d(), **geometry)
    with pytest.raises(TypeError, match="`dtype` must be floating point"):
        QuantLinear.from_canonical(canonical_linear(), dtype=torch.int8)


def test_repack_for_another_isa(native: Any) -> None:
    _, layer = make_linear()
    x = torch.randn(5, 24, generator=rng(8))
    native.set_isa("generic")
    expected = layer.repack()(x)
    assert layer.kernel_name() == "linear_w8a8_generic"
    for name in native.isa_supported():
        native.set_isa(name)
        assert torch.equal(layer.repack()(x), expected)
        assert name in layer.kernel_name()


def test_forward_mode_and_functorch_are_refused_not_zero() -> None:
    layer = QuantLinear.from_float(nn.Linear(8, 4), input_mode="dynamic")
    x = torch.randn(2, 8)
    with pytest.raises(RuntimeError, match="do not pass through compressed layers"):
        torch.func.jvp(layer, (x,), (torch.ones_like(x),))
