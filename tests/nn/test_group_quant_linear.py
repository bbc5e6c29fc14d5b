"""GroupQuantLinear as a replacement of nn.Linear: construction, results, refusals, gradients, compilers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcompress.nn import GroupQuantLinear
from fastcompress.ops import W4Canonical, W8Canonical
from fastcompress.ops.canonical_w4 import pack_nibbles
from tests import tolerances
from tests.nn.group_cases import product, quantized
from tests.ops.cases import canonical_linear, rng

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: weight_bits, symmetric, input_mode: everything that exists.
FORMS = [
    (4, True, "dynamic_16bit"),
    (4, False, "dynamic_16bit"),
    (4, True, "dynamic_symmetric"),
    (4, False, "dynamic_symmetric"),
    (8, True, "dynamic_16bit"),
]


def dense(inputs: int = 24, out: int = 10, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, out, **options)


def make(inputs: int = 24, out: int = 10, **options: Any) -> GroupQuantLinear:
    return GroupQuantLinear.from_float(dense(inputs, out), **{"group_size": 8, **options})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group_size", [None, 8, 32, 64])
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_weights_and_results_are_numpy_s(form: Any, group_size: int | None, scale_dtype: torch.dtype) -> None:
    """72 inputs: the last group of 32 and of 64 is short."""
    bits, symmetric, mode = form
    float_layer = dense(72, 20)
    layer = GroupQuantLinear.from_float(
        float_layer,
        weight_bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
        input_mode=mode,
    )
    w = quantized(float_layer.weight, bits, group_size, symmetric, scale_dtype)
    np.testing.assert_array_equal(layer.weight.numpy(), w.floats)
    np.testing.assert_array_equal(layer.dequantize().numpy(), w.floats)
    for rows in (1, 5, 40):
        x = torch.randn(rows, 72, generator=rng(rows))
        np.testing.assert_array_equal(layer(x).numpy(), product(x, w, mode, float_layer.bias))


@pytest.mark.parametrize("mode", ["dynamic_16bit", "dynamic_symmetric"])
def test_minima_instead_of_zero_points(mode: str) -> None:
    g = rng(3)
    values = torch.randint(0, 16, (10, 24), generator=g, dtype=torch.uint8)
    minimum, scale = torch.randn(10, 3, generator=g), torch.rand(10, 3, generator=g) + 0.1
    c = W4Canonical(pack_nibbles(values), scale, None, 24, 8, mode, None, minimum)
    layer = GroupQuantLinear.from_canonical(c)
    assert not layer.symmetric
    spread = lambda t: t.repeat_interleave(8, 1)  # noqa: E731
    expected = values.float() * spread(scale) + spread(minimum)
    assert torch.equal(layer.weight, expected)
    assert list(layer.state_dict()) == ["weight_packed", "weight_scale", "weight_min"]
    w = quantized(torch.zeros(10, 24), 4, 8)
    w.values, w.scale = values.numpy().astype(np.int64), scale.numpy()
    x = torch.randn(6, 24, generator=g)
    np.testing.assert_array_equal(layer(x).numpy(), product(x, w, mode, minimum=minimum.numpy()))


@pytest.mark.parametrize("bits", [4, 8])
def test_sixteen_bit_activations_are_as_good_as_floats(bits: int) -> None:
    """The promise of W4A16 and W8A16, against float64 on the same weights."""
    layer = make(96, 30, weight_bits=bits, group_size=32)
    x = torch.randn(7, 96, generator=rng(1)) * torch.logspace(-2, 2, 96)
    weight, a = layer.weight.double().numpy(), x.double().numpy()
    off, size = np.zeros((7, 30)), np.zeros((7, 30))
    for start in range(0, 96, 32):
        largest = np.abs(a[:, start : start + 32]).max(1, keepdims=True)
        magnitude = np.abs(weight[:, start : start + 32]).sum(1)
        off += largest * magnitude * tolerances.SIXTEEN_BITS
        size += largest * magnitude
    assert layer.bias is not None
    exact = a @ weight.T + layer.bias.double().numpy()
    bound = tolerances.added_bound(off + tolerances.group_bound(3, size), exact)
    assert (np.abs(layer(x).double().numpy() - exact) <= bound).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_has_the_input_s_dtype(form: Any, dtype: torch.dtype) -> None:
    """Inputs are widened, so the result is that of the float32 input, rounded once."""
    layer = make(weight_bits=form[0], symmetric=form[1], input_mode=form[2])
    x = torch.randn(3, 24, generator=rng(1)).to(dtype)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


def test_every_shape_and_stride() -> None:
    layer = make()
    x = torch.randn(2, 3, 24, generator=rng(1))
    y = layer(x)
    assert y.shape == (2, 3, 10)
    assert torch.equal(layer(x.reshape(-1, 24)), y.reshape(-1, 10))
    assert torch.equal(layer(x[0, 0]), y[0, 0])
    assert torch.equal(layer(x.transpose(0, 1)), y.transpose(0, 1))
    assert torch.equal(layer(x.permute(2, 1, 0).contiguous().permute(2, 1, 0)), y)
    wide = torch.zeros(2, 3, 48)
    wide[..., ::2] = x
    assert torch.equal(layer(wide[..., ::2]), y)
    assert torch.equal(layer(x[:1, :1].expand(4, 5, 24)), y[:1, :1].expand(4, 5, 10))
    for empty in ((0, 24), (2, 0, 24)):
        assert layer(torch.empty(empty)).shape == (*empty[:-1], 10)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_not_finite_is_nan_alone(form: Any) -> None:
    layer = make(weight_bits=form[0], symmetric=form[1], input_mode=form[2])
    x = torch.randn(4, 24, generator=rng(1))
    expected = layer(x)
    x[1, 3], x[3, 20] = float("nan"), -float("inf")
    y = layer(x)
    assert bool(y[[1, 3]].isnan().all())
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activation(activation: str) -> None:
    layer, plain = make(activation=activation), make()
    x = torch.randn(5, 24, generator=rng(1))
    before = plain(x).numpy()
    exact = getattr(nn.functional, activation)(plain(x).double()).numpy()
    assert (np.abs(layer(x).numpy() - exact) <= tolerances.output_bound(activation, "f32", before, exact)).all()
    assert torch.equal(plain.with_activation(activation)(x), layer(x))


def test_attributes_and_repr() -> None:
    layer = make(symmetric=False, input_mode="dynamic_symmetric", activation="gelu")
    assert (layer.in_features, layer.out_features, layer.activation) == (24, 10, "gelu")
    assert (layer.weight_bits, layer.group_size, layer.symmetric) == (4, 8, False)
    assert layer.input_mode == "dynamic_symmetric"
    assert list(dict(layer.named_buffers())) == ["packed"]
    assert list(layer.parameters()) == []
    assert layer.kernel_name().startswith("linear_w4_")
    assert make(weight_bits=8).kernel_name().startswith("linear_w8_")
    assert repr(layer) == (
        "GroupQuantLinear(in_features=24, out_features=10, bias=True, weight_bits=4, group_size=8, symmetric=False, "
        "input_mode='dynamic_symmetric', activation='gelu')"
    )
    assert layer.training
    assert not GroupQuantLinear.from_float(dense().eval()).training
    assert GroupQuantLinear.from_float(dense(bias=False)).bias is None
    assert GroupQuantLinear.from_float(dense().bfloat16()).weight.dtype == torch.bfloat16


def test_weights_take_half_a_byte() -> None:
    """4.3 bits a weight at group 128 with bf16 scales, the issue says."""
    blob = GroupQuantLinear.from_float(nn.Linear(1024, 1024, bias=False), group_size=128).packed
    assert blob.numel() * 8 <= 4.3 * 1024 * 1024


INPUTS: list[tuple[Any, type[Exception], str]] = [
    (
        torch.zeros(3, 24).double(),
        TypeError,
        "linear_w4: `input` has dtype float64, allowed: float32, bfloat16, float16; convert it with .float()",
    ),
    (
        torch.zeros(3, 24, dtype=torch.uint8),
        TypeError,
        "linear_w4: `input` has dtype uint8, allowed: float32, bfloat16, float16; convert it with .float()",
    ),
    (
        torch.zeros(3, 23),
        ValueError,
        "GroupQuantLinear: `input` has 23 features (shape [3, 23]), the layer takes in_features=24",
    ),
    (
        torch.tensor(1.0),
        ValueError,
        "linear_w4: `input` must have at least one dimension ([..., in_features]), got a scalar",
    ),
    (
        torch.zeros(3, 24, device="meta"),
        ValueError,
        "linear_w4: `packed` is on device cpu but `input` is on meta; move one of them (layer.to(device) repacks a "
        "layer's weights)",
    ),
    ([1.0] * 24, TypeError, "GroupQuantLinear: `input` must be a torch.Tensor, got list"),
]


@pytest.mark.parametrize(("x", "error", "message"), INPUTS)
@pytest.mark.parametrize("grad", [False, True])
def test_forward_refuses(x: Any, error: type[Exception], message: str, grad: bool) -> None:
    layer = make()
    before = layer.packed.clone()
    if grad and isinstance(x, Tensor) and x.is_floating_point():
        x = x.clone().requires_grad_()
    with pytest.raises(error) as caught:
        layer(x)
    assert type(caught.value) is error
    assert str(caught.value) == message
    assert torch.equal(layer.packed, before)


class _OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight_bits": 3}, ValueError, r"weight_bits.* must be 4 or 8, got 3"),
    ({"group_size": 12}, ValueError, r"`group_size` must be a multiple of 8, or None for all 24 inputs, got 12"),
    ({"group_size": 0}, ValueError, r"`group_size` must be a multiple of 8, .* got 0"),
    ({"group_size": -8}, ValueError, r"`group_size` must be a multiple of 8, .* got -8"),
    ({"group_size": "8"}, TypeError, r"`group_size` must be an integer or None, got '8'"),
    ({"group_size": 8.0}, TypeError, r"`group_size` must be an integer or None, got 8\.0"),
    ({"weight_bits": 8, "symmetric": False}, ValueError, r"`symmetric` must be True for 8 bits"),
    ({"scale_dtype": torch.float64}, TypeError, r"`scale_dtype` must be one of .* got torch\.float64"),
    ({"scale_dtype": "bfloat16"}, TypeError, r"`scale_dtype` must be one of .* got bfloat16"),
    ({"input_mode": "static"}, ValueError, r"`input_mode` of four-bit layers is .* got 'static'"),
    ({"weight_bits": 8, "input_mode": "dynamic_symmetric"}, ValueError, r"`input_mode` of int8 weights in groups"),
    ({"activation": "tanh"}, ValueError, r"`activation` must be one of none, relu, .* got 'tanh'"),
]


@pytest.mark.parametrize(("options", "error", "message"), ARGUMENTS)
def test_from_float_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GroupQuantLinear.from_float(dense(), **options)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_from_float_refuses_modules_it_cannot_reproduce(name: str) -> None:
    for module in (_OwnForward(3, 3), nn.Conv2d(3, 3, 1)):
        with pytest.raises(TypeError, match=r"must be an nn\.Linear with nn\.Linear's forward, got"):
            GroupQuantLinear.from_float(module)  # type: ignore[arg-type]
    broken = dense()
    getattr(broken, name).data.view(-1)[4] = float("inf")
    with pytest.raises(ValueError, match=f"`{name}` holds NaN or infinity; repair the model"):
        GroupQuantLinear.from_float(broken)


def test_from_canonical_refuses() -> None:
    with pytest.raises(TypeError, match=r"expected a W4Canonical or W8Canonical, got W8A8Canonical"):
        GroupQuantLinear.from_canonical(canonical_linear())
    c = make(weight_bits=8).canonical()
    assert isinstance(c, W8Canonical)
    with pytest.raises(TypeError, match="`dtype` must be floating point"):
        GroupQuantLinear.from_canonical(c, dtype=torch.int8)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_the_weight(form: Any) -> None:
    """Rounded inputs count as they are: dL/dx = dL/dy @ W."""
    layer = make(weight_bits=form[0], symmetric=form[1], input_mode=form[2])
    x = torch.randn(2, 3, 24, generator=rng(6), requires_grad=True)
    upstream = torch.randn(2, 3, 10, generator=rng(7))
    layer(x).backward(upstream)
    assert x.grad is not None
    rows, weight = upstream.reshape(-1, 10).double().numpy(), layer.weight.double().numpy()
    exact = rows @ weight
    bound = tolerances.dot_bound(np.abs(rows), np.abs(weight.T), exact)
    assert (np.abs(x.grad.reshape(-1, 24).double().numpy() - exact) <= bound).all()
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x.detach()).is_inference()
    with pytest.raises(RuntimeError, match="do not pass through compressed layers"):
        torch.func.jvp(layer, (x.detach(),), (torch.ones_like(x),))


def test_hooks_run() -> None:
    layer, seen = make(), []
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    x = torch.randn(3, 24, generator=rng(1))
    assert torch.equal(layer(x), make()(x * 2))
    assert seen == [(3, 10)]
    layer.register_full_backward_hook(lambda module, *gradients: seen.append("backward"))
    layer(x.requires_grad_()).sum().backward()
    assert seen[-1] == "backward"


@pytest.mark.parametrize("form", FORMS)
def test_repack_for_another_isa(native: Any, form: Any) -> None:
    layer = make(72, 33, weight_bits=form[0], symmetric=form[1], input_mode=form[2])
    x = torch.randn(5, 72, generator=rng(8))
    expected = layer(x)
    for name in native.isa_supported():
        native.set_isa(name)
        assert torch.equal(layer.repack()(x), expected)
        assert name in layer.kernel_name()


class _Net(nn.Module):
    """Three forms behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            make(16, 16, weight_bits=bits, symmetric=symmetric, input_mode=mode)
            for bits, symmetric, mode in (FORMS[1], FORMS[2], FORMS[4])
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return x


@pytest.fixture
def net() -> Iterator[_Net]:
    torch._dynamo.reset()
    yield _Net().eval()
    torch._dynamo.reset()


def batch(n: int) -> Tensor:
    return torch.randn(n, 16, generator=rng(n))


def test_compile(net: _Net) -> None:
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for n in (2, 3, 5):
            assert torch.equal(compiled(batch(n)), net(batch(n)))
    gradients = []
    for function in (net, compiled):
        x = batch(4).requires_grad_()
        function(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("strict", [False, True])
def test_export_and_its_file(net: _Net, strict: bool) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (batch(3),), dynamic_shapes=dynamic, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    with torch.no_grad():
        for n in (2, 4):
            assert torch.equal(loaded(batch(n)), net(batch(n)))
