"""Scales, zero points and int8 weights against numpy float32 arithmetic and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcompress.ops.arithmetic import quantize_rows, quantize_static
from fastcompress.quantization import choose_qparams, quantize_weight, weight_scales
from fastcompress.quantization import qparams as module
from tests.quantization.margins import MSE_OPTIMUM

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
f32 = np.float32


def dequantized(x: float, scale: float, zero_point: int) -> float:
    q = int(quantize_static(torch.tensor([x]), scale, zero_point)[0])
    return (q - zero_point) * scale


@settings(max_examples=300, deadline=None)
@given(FLOAT32, FLOAT32, st.booleans())
def test_any_range_gives_usable_parameters(a: float, b: float, symmetric: bool) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = choose_qparams(low, high, symmetric)
    assert scale == float(f32(scale))
    assert np.finfo(f32).tiny <= scale < math.inf
    assert 0 <= zero_point <= 255
    assert dequantized(0.0, scale, zero_point) == 0.0
    for end in (low, high):
        # Half a step by rounding, half a step more at an end because the zero point is rounded too.
        assert abs(dequantized(end, scale, zero_point) - end) <= scale * (1 + 2.0**-15)
    if symmetric:
        assert zero_point == 128


@settings(max_examples=200, deadline=None)
@given(FLOAT32, FLOAT32)
def test_formula_of_the_architecture_page(a: float, b: float) -> None:
    low, high = f32(min(a, b, 0.0)), f32(max(a, b, 0.0))
    part = f32(1) / f32(255)
    scale = max(f32(high * part) - f32(low * part), f32(2.0**-100))
    zero_point = min(max(float(np.rint(-low * (f32(1) / scale))), 0), 255)
    assert choose_qparams(float(low), float(high)) == (float(scale), int(zero_point))
    peak = max(-low, high)
    symmetric = max(peak * (f32(1) / f32(127)), f32(2.0**-100))
    assert choose_qparams(float(low), float(high), symmetric=True) == (float(symmetric), 128)


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOAT32, min_size=1, max_size=8), st.booleans())
def test_same_parameters_as_per_token_quantization(row: list[float], symmetric: bool) -> None:
    _, scale, zero_point = quantize_rows(torch.tensor([row], dtype=torch.float32), symmetric)
    assert choose_qparams(min(row), max(row), symmetric) == (float(scale), int(zero_point))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 255.0, (1.0, 0)),
        (-255.0, 0.0, (1.0, 255)),
        (3.0, 510.0, (2.0, 0)),  # widened to hold 0
        (-510.0, -3.0, (2.0, 255)),
        (0.0, 0.0, (2.0**-100, 0)),
        (0.0, 1e-44, (2.0**-100, 0)),
    ],
)
def test_known_ranges(low: float, high: float, expected: tuple[float, int]) -> None:
    assert choose_qparams(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (math.nan, 1.0, "`low` must be finite in float32, got nan"),
        (0.0, math.inf, "`high` must be finite in float32, got inf"),
        (-1e300, 1.0, "`low` must be finite in float32, got -1e\\+300"),
        (2.0, 1.0, "`low` must not exceed `high`, got \\[2.0, 1.0\\]"),
    ],
)
def test_bad_ranges(low: float, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"choose_qparams: {message}"):
        choose_qparams(low, high)


def test_many_ranges_at_once_equal_one_by_one() -> None:
    ends = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).mul(100).sort(dim=1).values
    for symmetric in (False, True):
        scales, zero_points = module.qparams_of_ranges(ends[:, 0], ends[:, 1], symmetric)
        pairs = [choose_qparams(low, high, symmetric) for low, high in ends.tolist()]
        assert list(zip(scales.tolist(), zero_points.tolist(), strict=True)) == pairs


# --- weights


def weight_error(weight: Tensor, scale: Tensor) -> Tensor:
    q = quantize_weight(weight, scale).double().flatten(1)
    return (q * scale.double().unsqueeze(1) - weight.double().flatten(1)).square().mean(dim=1)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (4, 3, 3, 3), (6, 1, 5, 5)])
def test_minmax_weight_scales_are_exact(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[0] = 0.0
    absmax = np.abs(weight.numpy().reshape(shape[0], -1)).max(axis=1)
    expected = np.maximum(absmax, f32(2.0**-100)) / f32(127)
    np.testing.assert_array_equal(weight_scales(weight).numpy(), expected)


def test_bfloat16_and_float64_weights_count_as_float32() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    short = weight.bfloat16()
    assert torch.equal(weight_scales(short), weight_scales(short.float()))
    assert torch.equal(weight_scales(weight.double(), "mse"), weight_scales(weight, "mse"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=3, max_size=12), st.floats(2.0**-10, 100.0, width=32))
def test_quantized_weight_is_numpys(values: list[float], scale: float) -> None:
    weight = torch.tensor([values], dtype=torch.float32)
    expected = np.clip(np.rint(weight.numpy() / f32(scale)), -127, 127).astype(np.int8)
    got = quantize_weight(weight, torch.tensor([scale], dtype=torch.float32))
    assert got.dtype == torch.int8
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace", "student"])
def test_mse_weight_scales_match_brute_force(kind: str) -> None:
    rng = np.random.default_rng(3)
    draw = {
        "normal": rng.standard_normal((16, 4000)),
        "uniform": rng.uniform(-1, 1, (16, 4000)),
        "laplace": rng.laplace(size=(16, 4000)),
        "student": rng.standard_t(3, (16, 4000)),
    }[kind]
    weight = torch.from_numpy(draw.astype(f32))
    full = weight_scales(weight)
    chosen = weight_error(weight, weight_scales(weight, "mse"))
    assert bool((chosen <= weight_error(weight, full)).all())
    grid = torch.stack([weight_error(weight, full * fraction) for fraction in torch.linspace(0.38, 1.0, 311)])
    # On average over the channels: a single one's error jumps from candidate to candidate.
    assert float(chosen.mean()) <= float(grid.amin(dim=0).mean()) * MSE_OPTIMUM


def test_mse_clips_an_outlier_that_minmax_does_not() -> None:
    weight = torch.full((1, 4096), 0.1) * torch.linspace(-1, 1, 4096)
    weight[0, 0] = 0.25
    assert float(weight_scales(weight, "mse")[0]) < float(weight_scales(weight)[0])


@pytest.mark.parametrize("magnitude", [1e-35, 1e35])
def test_mse_search_does_not_depend_on_the_magnitude(magnitude: float) -> None:
    weight = torch.randn(3, 400, generator=torch.Generator().manual_seed(4))
    power = 2.0 ** round(math.log2(magnitude))
    extreme = weight * power
    if power < 1:  # the floor 2^-100 is above these weights
        assert torch.equal(weight_scales(extreme, "mse"), weight_scales(extreme))
    else:
        assert torch.equal(weight_scales(extreme, "mse"), weight_scales(weight, "mse") * power)


def test_pieces_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(13, 50, generator=torch.Generator().manual_seed(5))
    whole = weight_scales(weight, "mse")
    monkeypatch.setattr(module, "_CHUNK_ELEMS", 100)
    assert torch.equal(weight_scales(weight, "mse"), whole)


def test_zero_channels_are_fine() -> None:
    weight = torch.zeros(2, 8)
    for method in module.WEIGHT_METHODS:
        scale = weight_scales(weight, method)
        assert bool((scale >= np.finfo(f32).tiny).all())
        assert not quantize_weight(weight, scale).any()


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="weight_scales: `method` must be one of minmax, mse, got 'best'"):
        weight_scales(torch.ones(2, 2), "best")
    with pytest.raises(ValueError, match="weight_scales: `weight` holds NaN or infinity"):
        weight_scales(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(TypeError, match="weight_scales: `weight` must be floating point, got int8"):
        weight_scales(torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"weight_scales: `weight` must be .* got shape \[0, 3\]"):
        weight_scales(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"quantize_weight: `scale` has shape \[3\], expected \[2\]"):
        quantize_weight(torch.ones(2, 2), torch.ones(3))
    with pytest.raises(ValueError, match="quantize_weight: `scale` must be positive, normal and finite"):
        quantize_weight(torch.ones(2, 2), torch.tensor([1.0, 0.0]))
