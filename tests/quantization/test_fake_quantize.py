"""`fake_quantize`: the oracle's bits forward, the closed forms and finite differences of its surrogate backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.quantization import fake_quantize
from fastcompress.quantization.fake_quantize import attach
from tests import oracles


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


@pytest.mark.parametrize(("scale", "zero_point"), [(0.011, 0), (0.03, 117), (1.0 / 3.0, 255), (2.0**-100, 128)])
def test_inputs_are_those_of_the_int8_layer(scale: float, zero_point: int) -> None:
    edges = torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, 1e30, -1e30, torch.inf, -torch.inf]) * scale
    x = torch.cat([values(1000), edges])
    rounded = fake_quantize(x, torch.tensor(scale), number(zero_point), 0, 255)
    q = oracles.quantize_per_tensor(x.numpy(), scale, zero_point)
    expected = (q.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    assert np.array_equal(rounded.numpy(), expected)


def test_weights_are_divided_per_channel() -> None:
    weight = values(3, 4, 5, 5)
    scale = torch.tensor([0.1, 0.013, 0.7])
    rounded = fake_quantize(weight, scale, None, -127, 127)
    wide = scale.numpy().reshape(3, 1, 1, 1)
    expected = np.clip(np.rint(weight.numpy() / wide), -127, 127).astype(np.float32) * wide
    assert np.array_equal(rounded.numpy(), expected)


def test_nan_passes_or_is_the_kernels_zero() -> None:
    x = torch.tensor([1.0, torch.nan])
    scale, zero_point = torch.tensor(0.5), number(7)
    assert fake_quantize(x, scale, zero_point, 0, 255, nan_is_zero=True).tolist() == [1.0, 0.0]
    passed = fake_quantize(x, scale, zero_point, 0, 255)
    assert passed[0] == 1.0
    assert bool(passed[1].isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_formats_are_rounded_in_float32(dtype: torch.dtype) -> None:
    x = values(64).to(dtype)
    rounded = fake_quantize(x, torch.tensor(0.03), number(100), 0, 255)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, fake_quantize(x.float(), torch.tensor(0.03), number(100), 0, 255).to(dtype))


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    # In steps of 0.5 with zero point 10: 244.5 is rounded to 244, the last integer inside is 254.5 - 10, rounded to it.
    steps = torch.tensor([-10.6, -10.5, -10.0, 0.2, 245.0, 245.4, 245.6, torch.nan])
    x = (steps * 0.5).requires_grad_()
    upstream = torch.arange(1.0, 9.0)
    fake_quantize(x, torch.tensor(0.5), number(10), 0, 255).backward(upstream)
    # -10.5 is rounded half to even, to -10, which is the lowest.
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]


def test_the_step_s_gradient_in_closed_form() -> None:
    x = torch.tensor([[0.6, -0.8, 5.0, -7.0], [0.1, 0.2, 0.3, -0.4]])
    scale = torch.tensor([1.0, 2.0])
    step, factor = torch.nn.Parameter(scale.clone()), torch.tensor(0.25)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    fake_quantize(x, scale, None, -3, 3, step=step, step_factor=factor).backward(upstream)
    first = 1 * (1 - 0.6) + 2 * (-1 + 0.8) + 3 * 3 + 4 * (-3)
    second = -(0.1 + 0.2 + 0.3 - 0.4) / 2.0
    assert step.grad is not None
    torch.testing.assert_close(step.grad, torch.tensor([first, second]) * 0.25)


@pytest.mark.parametrize("zero_point", [None, 0, 90])
def test_gradients_against_finite_differences(zero_point: int | None) -> None:
    """Of the surrogate that straight-through stands for: the rounding error of each element is a constant."""
    channels = zero_point is None
    low, high = (-7, 7) if channels else (0, 255)
    zero = 0 if zero_point is None else zero_point
    x = values(3, 40, seed=2)
    scale = torch.tensor([0.2, 0.31, 0.45]) if channels else torch.tensor(0.0123)
    wide = (scale.reshape(3, 1) if channels else scale).double()
    upstream = values(3, 40, seed=3)

    steps = x.double() / wide
    error = torch.round(steps) - steps
    near_edge = ((steps - (low - zero)).abs() < 0.6) | ((steps - (high - zero)).abs() < 0.6)
    assert bool((steps + zero > high).any() or (steps + zero < low).any())

    def surrogate(x64: Tensor, scale64: Tensor) -> Tensor:
        shifted = (x64 / scale64 + error + zero).clamp(low, high) - zero
        return torch.where(near_edge, 0.0, shifted * scale64 * upstream.double())

    h = 1e-6
    slope_x = (surrogate(x.double() + h, wide) - surrogate(x.double() - h, wide)) / (2 * h)
    slope_s = (surrogate(x.double(), wide + h) - surrogate(x.double(), wide - h)) / (2 * h)
    slope_s = slope_s.sum(dim=1) if channels else slope_s.sum()

    leaf = x.clone().requires_grad_()
    step = torch.nn.Parameter(scale.clone())
    out = fake_quantize(
        leaf,
        scale,
        None if zero_point is None else number(zero_point),
        low,
        high,
        step=step,
        step_factor=torch.tensor(1.0),
    )
    out.backward(torch.where(near_edge, 0.0, upstream))
    assert leaf.grad is not None
    assert step.grad is not None
    # Central differences of a piecewise linear function of x / s: an error of h² and rounding of 1e-16 / h.
    torch.testing.assert_close(leaf.grad.double(), slope_x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step.grad.double(), slope_s, rtol=1e-4, atol=1e-3)


def test_a_step_that_is_not_used_gets_a_gradient_of_zeros() -> None:
    x, step = values(5).requires_grad_(), torch.nn.Parameter(torch.ones(3))
    out = attach(x, step)
    assert torch.equal(out, x)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 5
    assert step.grad is not None
    assert step.grad.tolist() == [0.0] * 3
    with torch.no_grad():
        assert attach(x, step) is x
    assert attach(x, None) is x
