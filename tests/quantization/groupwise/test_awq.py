"""AWQ: scales that follow large inputs, the error it says, clipping, shared scales, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.quantization.groupwise import GroupGrid, InputStatistics, awq, awq_scale, rtn

from . import oracle
from .problems import normal, output_error


def outlying_inputs(rows: int = 400, inputs: int = 128) -> Tensor:
    x = normal(rows, inputs, seed=3)
    x[:, ::16] *= 30.0  # the salient one percent of the paper, here six
    return x


@pytest.mark.parametrize("size", [32, 64, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_beats_rounding_where_inputs_have_outliers(size: int | None, symmetric: bool) -> None:
    weight, x, grid = normal(64, 128), outlying_inputs(), GroupGrid(4, size, symmetric)
    statistics = InputStatistics.of(x)
    best = awq_scale([weight], statistics, grid)
    assert best.alpha > 0.0
    nearest = output_error(x, weight, rtn(weight, grid).dequantize())
    found = awq(weight, statistics, grid, scale=best.scale)
    scaled = output_error(x, weight, found.dequantize() / best.scale)
    assert scaled < 0.5 * nearest
    assert found.report["relative_error"] == pytest.approx(scaled, rel=1e-2)
    clipped = output_error(x, weight, awq(weight, statistics, grid).dequantize())
    assert scaled < clipped < nearest


def test_the_scale_and_its_error_are_the_papers() -> None:
    weight, x, size, steps = normal(24, 64), outlying_inputs(200, 64), 32, 10
    found = awq_scale([weight[:8], weight[8:]], InputStatistics.of(x), GroupGrid(4, size), steps=steps)
    w, inputs = weight.numpy(), x.double().numpy()
    magnitude = np.abs(inputs).mean(0)
    errors, scales = [], []
    for step in range(steps):
        scale = magnitude ** (step / steps)
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        _, rounded = oracle.rtn(w * scale, size)
        errors.append(np.square(inputs @ (rounded / scale - w).T.astype(np.float64)).sum())
        scales.append(scale)
    best = int(np.argmin(errors))
    assert found.alpha == best / steps
    np.testing.assert_allclose(found.scale.numpy(), scales[best], rtol=1e-5)
    assert found.error == pytest.approx(errors[best] / errors[0], rel=1e-2)


def test_even_inputs_are_left_alone() -> None:
    statistics = InputStatistics(torch.eye(64) * 9.0, torch.full((64,), 0.8), 9)
    best = awq_scale([normal(8, 64)], statistics, GroupGrid(4, 32))
    assert (best.alpha, best.error) == (0.0, 1.0)
    assert bool((best.scale == 1.0).all())


def test_shared_scales() -> None:
    x, shared = outlying_inputs(200, 32), torch.arange(32) % 16
    best = awq_scale([normal(8, 32)], InputStatistics.of(x), GroupGrid(4, 16), shared=shared)
    assert best.alpha > 0.0
    assert torch.equal(best.scale[:16], best.scale[16:])


def test_dead_and_huge_inputs_give_finite_scales() -> None:
    x = outlying_inputs(100, 32)
    x[:, 3] = 0.0
    x[:, 5] = 1e15
    statistics = InputStatistics.of(x)
    best = awq_scale([normal(8, 32)], statistics, GroupGrid(4, 16))
    assert bool(torch.isfinite(best.scale).all())
    assert bool((best.scale > 0).all())
    assert bool(torch.isfinite(awq(normal(8, 32), statistics, GroupGrid(4, 16), scale=best.scale).dequantize()).all())


def test_clipping_is_searched_on_outputs() -> None:
    weight, x = normal(64, 96) ** 3, outlying_inputs(400, 96)
    statistics, grid = InputStatistics.of(x), GroupGrid(4, 48)
    clipped, plain = (awq(weight, statistics, grid, clip=clip) for clip in (True, False))
    assert output_error(x, weight, clipped.dequantize()) < output_error(x, weight, plain.dequantize())
    assert torch.equal(plain.values, rtn(weight, grid).values)


def test_refusals() -> None:
    weight, statistics, grid = normal(4, 16), InputStatistics.of(normal(20, 16)), GroupGrid(4, 8)
    with pytest.raises(ValueError, match="weights` is empty"):
        awq_scale([], statistics, grid)
    with pytest.raises(ValueError, match="steps must be positive"):
        awq_scale([weight], statistics, grid, steps=0)
    with pytest.raises(ValueError, match="statistics are of 16 inputs"):
        awq_scale([normal(4, 8)], statistics, grid)
    with pytest.raises(ValueError, match="statistics are of 16 inputs"):
        awq(normal(4, 8), statistics, grid)
    broken = InputStatistics.of(torch.full((3, 16), float("inf")))
    with pytest.raises(ValueError, match="`statistics` hold NaN"):
        awq(weight, broken, grid)
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="`weight` holds NaN"):
        awq_scale([weight], statistics, grid)
