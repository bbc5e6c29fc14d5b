"""Gradients of block-sparse float layers: those of the same layer in torch, dense and in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcompress.ops import ACTIVATIONS, BlockCSR, SparseCanonical, pack
from tests.ops.cases import rng

OPS = torch.ops.fastcompress
FORMS = ((torch.float32, (16, 1)), (torch.float32, (4, 1)), (torch.float32, (1, 1)), (torch.bfloat16, (16, 2)))
GEOMETRY: dict[str, Any] = {"kernel_size": [3, 3], "stride": [2, 1], "padding": [0, 1, 1, 2], "dilation": [1, 1]}

#: Gradients are float32 sums of at most 150 products of normal numbers, and two formulas of smooth activations differ
#: by some 8u: a few times 150 u, where a wrong term would show as 0.1 and more.
MARGIN = {"rtol": 1e-4, "atol": 1e-4}

_SMOOTH = {
    "none": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}


def _layer(
    form: tuple[torch.dtype, tuple[int, int]], columns: int, activation: str, kernel: tuple[int, int] | None = None
) -> SparseCanonical:
    dtype, block = form
    matrix = torch.randn(2 * 16, columns * block[1], generator=rng(1)).to(dtype)
    keep = torch.rand(2 * 16 // block[0], columns, generator=rng(2)) < 0.5
    matrix *= keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    bias = torch.randn(2 * 16, generator=rng(3))
    return SparseCanonical(BlockCSR.from_dense(matrix, block), bias, activation, kernel)


def _leaves(*shapes: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs for the operator (float32) and the same numbers in float64."""
    values = [torch.randn(shape, generator=rng(4 + i)) for i, shape in enumerate(shapes)]
    return [v.clone().requires_grad_() for v in values], [v.double().requires_grad_() for v in values]


def _assert_same_gradients(y: Tensor, leaves: list[Tensor], want: Tensor, dense: list[Tensor]) -> None:
    torch.testing.assert_close(y.double(), want, **MARGIN)
    grad = torch.randn(y.shape, generator=rng(9))
    found, wanted = torch.autograd.grad(y, leaves, grad), torch.autograd.grad(want, dense, grad.double())
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, **MARGIN)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_gradients_are_those_of_the_dense_layer(form: Any, activation: str) -> None:
    c = _layer(form, 20, activation)
    k = c.weight_shape[1]
    (x, residual), (x64, residual64) = _leaves((2, 3, k), (2, 3, 32))
    assert c.bias is not None
    want = _SMOOTH[activation](F.linear(x64, c.dequantize().double(), c.bias.double()) + residual64)
    _assert_same_gradients(OPS.linear_bsr(x, pack(c), 32, residual), [x, residual], want, [x64, residual64])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_gradients_are_those_of_the_dense_layer(form: Any, activation: str) -> None:
    c = _layer(form, 27, activation, (3, 3))
    channels = c.weight_shape[1]
    (x, residual), (x64, residual64) = _leaves((2, channels, 6, 5), (2, 32, 3, 6))
    assert c.bias is not None
    padded = F.pad(x64, (1, 2, 0, 1))
    want = _SMOOTH[activation](F.conv2d(padded, c.dequantize().double(), c.bias.double(), stride=(2, 1)) + residual64)
    y = OPS.conv2d_bsr(x, pack(c), 32, **GEOMETRY, residual=residual)
    _assert_same_gradients(y, [x, residual], want, [x64, residual64])
    single = OPS.conv2d_bsr(x[0], pack(c), 32, **GEOMETRY, residual=residual[0])
    assert torch.equal(single, y[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_their_tensor_s_dtype(dtype: torch.dtype) -> None:
    c = _layer(FORMS[0], 20, "silu")
    x = torch.randn(3, 20, generator=rng(6)).to(dtype).requires_grad_()
    residual = torch.randn(3, 32, generator=rng(7)).requires_grad_()
    OPS.linear_bsr(x, pack(c), 32, residual).sum().backward()
    assert x.grad is not None
    assert residual.grad is not None
    assert (x.grad.dtype, residual.grad.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("kernel", [None, (3, 3)])
def test_integer_output_and_empty_batches(kernel: tuple[int, int] | None) -> None:
    c = _layer(FORMS[1], 27, "gelu", kernel)
    name, geometry = ("linear_bsr", {}) if kernel is None else ("conv2d_bsr", GEOMETRY)
    shape = (27,) if kernel is None else (3, 6, 5)
    operator = getattr(OPS, name)
    x = torch.randn(2, *shape, generator=rng(8)).requires_grad_()
    assert not operator(x, pack(c), 32, **geometry, out_dtype=torch.uint8, out_scale=0.1).requires_grad
    empty = torch.empty(0, *shape, requires_grad=True)
    operator(empty, pack(c), 32, **geometry).sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("kernel", [None, (3, 3)])
def test_second_derivatives_are_refused(kernel: tuple[int, int] | None) -> None:
    c = _layer(FORMS[2], 27, "silu", kernel)
    name, geometry = ("linear_bsr", {}) if kernel is None else ("conv2d_bsr", GEOMETRY)
    x = torch.randn(2, *((27,) if kernel is None else (3, 6, 5)), generator=rng(8)).requires_grad_()
    y = getattr(OPS, name)(x, pack(c), 32, **geometry)
    (first,) = torch.autograd.grad(y, x, torch.ones_like(y, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        first.sum().backward()
