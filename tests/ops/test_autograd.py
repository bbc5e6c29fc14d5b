"""Gradients: to the input through the dequantized weight, through activation and residual; nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcompress.ops import ACTIVATIONS, W8A8Canonical, pack
from tests import tolerances
from tests.ops.cases import canonical_conv2d, canonical_linear, rng

OPS = torch.ops.fastcompress
GEOMETRY: dict[str, Any] = {"kernel_size": [3, 3], "stride": [2, 1], "padding": [0, 1, 1, 2], "dilation": [1, 1]}

#: gradcheck's margin: the operators compute in float32, the finite differences in float64 are good to 1e-8.
GRADCHECK = {"eps": 1e-6, "atol": 1e-4, "rtol": 1e-4}

_FLOAT64 = {
    "none": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}


class _Surrogate(torch.autograd.Function):
    """Forward: the layer in float64 on dequantized weights. Backward: the operator's. So gradcheck compares the two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, smooth: Any, operator: Any) -> Tensor:
        ctx.save_for_backward(x, residual)
        ctx.operator = operator
        return smooth(x, residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [t.float().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            y = ctx.operator(*inputs)
        found = torch.autograd.grad(y, inputs, grads[0].float())
        return (*(g.double() for g in found), None, None)


def _weight64(c: W8A8Canonical) -> Tensor:
    return c.weight.double() * c.weight_scale.double().view(-1, *[1] * (c.weight.dim() - 1))


def _on_grid(shape: tuple[int, ...], scale: float, zero_point: int) -> Tensor:
    """Values that static quantization returns unchanged: rounding then shifts no activation's derivative."""
    q = torch.randint(0, 256, shape, generator=rng(1))
    return (q - zero_point).double() * scale


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_gradcheck(activation: str) -> None:
    c = canonical_linear(activation=activation, input_scale=2.0**-6)
    packed, weight, bias = pack(c), _weight64(c), c.bias
    assert bias is not None
    x = _on_grid((3, 7), c.input_scale, c.input_zero_point).requires_grad_()
    residual = torch.randn(3, 5, generator=rng(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, r: _Surrogate.apply(
            x,
            r,
            lambda x, r: _FLOAT64[activation](x @ weight.t() + bias.double() + r),
            lambda x, r: OPS.linear_w8a8(x, packed, 5, r),
        ),
        (x, residual),
        **GRADCHECK,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_gradcheck(activation: str, groups: int) -> None:
    c = canonical_conv2d(4, 2, activation=activation, groups=groups, input_scale=2.0**-6)
    packed, weight, bias = pack(c), _weight64(c), c.bias
    assert bias is not None
    x = _on_grid((1, 2 * groups, 6, 5), c.input_scale, c.input_zero_point).requires_grad_()

    def smooth(x: Tensor, r: Tensor) -> Tensor:
        v = F.conv2d(F.pad(x, (1, 2, 0, 1)), weight, bias.double(), stride=(2, 1), groups=groups)
        return _FLOAT64[activation](v + r)

    residual = torch.randn(1, 4, 3, 6, generator=rng(3)).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, r: _Surrogate.apply(x, r, smooth, lambda x, r: OPS.conv2d_w8a8(x, packed, 4, **GEOMETRY, residual=r)),
        (x, residual),
        **GRADCHECK,
    )


@pytest.mark.parametrize("mode", ["dynamic", "dynamic_symmetric"])
def test_dynamic_gradient_is_that_of_the_dequantized_weight(mode: str) -> None:
    c = canonical_linear(input_mode=mode)
    x = torch.randn(2, 3, 7, generator=rng(4)).requires_grad_()
    grad = torch.randn(2, 3, 5, generator=rng(5))
    OPS.linear_w8a8(x, pack(c), 5).backward(grad)
    rows = grad.double().view(-1, 5)
    expected = rows @ _weight64(c)
    bound = tolerances.dot_bound(rows.abs().numpy(), _weight64(c).t().abs().numpy(), expected.numpy())
    assert x.grad is not None
    assert ((x.grad.double().view(-1, 7) - expected).abs().numpy() <= bound).all()


def test_saturated_static_activations_pass_no_gradient() -> None:
    c = canonical_linear(input_scale=0.5, input_zero_point=100)
    x = torch.tensor([[-50.0, -50.2, -50.3, 0.0, 77.5, 77.7, 78.0]], requires_grad=True)
    OPS.linear_w8a8(x, pack(c), 5).sum().backward()
    assert x.grad is not None
    # the ends round to 0 and 255: still inside
    assert (x.grad[0] != 0).tolist() == [True, True, False, True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_their_tensor_s_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(3, 7, generator=rng(6)).to(dtype).requires_grad_()
    residual = torch.randn(3, 5, generator=rng(7)).requires_grad_()
    OPS.linear_w8a8(x, pack(canonical_linear(activation="gelu")), 5, residual).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert residual.grad is not None
    assert residual.grad.dtype == torch.float32


def test_quantized_input_passes_the_gradient_to_the_residual_only() -> None:
    x = torch.randint(0, 256, (3, 7), generator=rng(8), dtype=torch.uint8)
    residual = torch.randn(3, 5, generator=rng(9)).requires_grad_()
    OPS.linear_w8a8(x, pack(canonical_linear()), 5, residual).sum().backward()
    assert residual.grad is not None
    assert residual.grad.eq(1).all()


def test_integer_output_carries_no_gradient() -> None:
    x = torch.randn(3, 7, generator=rng(10)).requires_grad_()
    y = OPS.linear_w8a8(x, pack(canonical_linear()), 5, out_dtype=torch.uint8, out_scale=0.1, out_zero_point=3)
    assert not y.requires_grad


def test_no_gradient_for_an_empty_batch_is_an_empty_gradient() -> None:
    x = torch.empty(0, 7, requires_grad=True)
    OPS.linear_w8a8(x, pack(canonical_linear(activation="silu")), 5).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 7)


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(3, 7, generator=rng(11)).requires_grad_()
    y = OPS.linear_w8a8(x, pack(canonical_linear()), 5)
    grad = torch.ones_like(y, requires_grad=True)
    (first,) = torch.autograd.grad(y, x, grad, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        first.sum().backward()
