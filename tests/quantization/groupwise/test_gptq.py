"""GPTQ against a column-by-column NumPy reference, against rounding, and on Hessians that have no inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.quantization.groupwise import GroupGrid, InputStatistics, gptq, rtn

from . import oracle
from .problems import Floats, correlated, normal, output_error

#: Outputs, inputs, group size, columns of a block: tails, groups larger and smaller than a block, whole rows.
SHAPES = [
    (9, 96, 32, 128),
    (6, 70, 32, 64),
    (5, 100, 24, 40),
    (4, 80, None, 16),
    (3, 72, 64, 16),
    (8, 40, 128, 128),
    (2, 9, 8, 1),
]

#: Float32 updates move a weight by less than this part of a step: 128 columns at 2^-24 each, times factors up to 100.
TIE = 1e-3


@pytest.mark.parametrize(("out", "inputs", "size", "block_cols"), SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_is_the_reference_up_to_ties(
    out: int, inputs: int, size: int | None, block_cols: int, symmetric: bool, act_order: bool
) -> None:
    weight, x = normal(out, inputs, seed=out), correlated(300, inputs)
    statistics = InputStatistics.of(x)
    found = gptq(weight, statistics, GroupGrid(4, size, symmetric), act_order=act_order, block_cols=block_cols)
    values, dequantized, ties = oracle.gptq(
        weight.numpy(), statistics.hessian.numpy(), min(size or inputs, inputs), symmetric, act_order
    )
    # One weight at a tie may go either way and takes its whole row along; other rows must be equal.
    clear = ties.min(axis=1) > TIE
    assert clear.sum() >= max(1, out // 2)
    np.testing.assert_array_equal(found.values.numpy()[clear], values[clear])
    np.testing.assert_array_equal(found.dequantize().numpy()[clear], dequantized[clear])


@pytest.mark.parametrize("size", [32, 64, None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("search", ["minmax", "mse", "output"])
@pytest.mark.parametrize("act_order", [True, False])
def test_beats_rounding_on_correlated_inputs(size: int | None, bits: int, search: str, act_order: bool) -> None:
    weight, x = normal(48, 160), correlated(600, 160)
    grid = GroupGrid(bits, size)
    found = gptq(weight, InputStatistics.of(x), grid, search=search, act_order=act_order)
    nearest = rtn(weight, grid, search="minmax" if search == "minmax" else "mse")
    gain = 0.5 if act_order else 0.8
    assert output_error(x, weight, found.dequantize()) < gain * output_error(x, weight, nearest.dequantize())
    assert found.report["relative_error"] == pytest.approx(output_error(x, weight, found.dequantize()), rel=1e-2)


def test_order_and_searched_scales_help_where_inputs_differ() -> None:
    weight, x = normal(64, 128), correlated(600, 128) * torch.logspace(-1, 1, 128)
    statistics, grid = InputStatistics.of(x), GroupGrid(4, None)

    def error(**options: Any) -> float:
        return output_error(x, weight, gptq(weight, statistics, grid, **options).dequantize())

    assert error(act_order=True) < 0.5 * error(act_order=False)
    assert error(search="output") < error(search="minmax")


def cost(x: Tensor, difference: Tensor) -> Floats:
    """Squared output error of each row, with the 1% that dampening adds, in float64."""
    a, d = x.double().numpy(), difference.double().numpy()
    dampening = 0.01 * np.square(a).sum(0).mean()
    return np.asarray(np.square(a @ d.T).sum(0) + dampening * np.square(d).sum(1))


@pytest.mark.parametrize(("out", "inputs", "size", "block_cols"), SHAPES)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
def test_refinement_lowers_every_rows_error(
    out: int, inputs: int, size: int | None, block_cols: int, bits: int, symmetric: bool
) -> None:
    weight, x = normal(out, inputs, seed=out), correlated(300, inputs)
    statistics, grid = InputStatistics.of(x), GroupGrid(bits, size, symmetric)
    plain, better = (
        gptq(weight, statistics, grid, search="mse", sweeps=sweeps, block_cols=block_cols) for sweeps in (0, 3)
    )
    before, after = (cost(x, weight - found.dequantize()) for found in (plain, better))
    assert bool((after <= before * (1.0 + 1e-4)).all())  # the package compares in float32
    assert bits == 8 or out * inputs < 100 or after.sum() < 0.98 * before.sum()
    assert bool((better.values >= grid.low).all() and (better.values <= grid.high).all())
    assert torch.equal(better.params.scale, better.params.scale.bfloat16().float())
    assert torch.equal(better.canonical().dequantize(), better.dequantize())


def test_refined_integers_are_the_best_one_by_one() -> None:
    """After many sweeps no single integer can change for the better; NumPy tries all of them."""
    weight, x = normal(4, 24), correlated(200, 24)
    found = gptq(weight, InputStatistics.of(x), GroupGrid(4, 8), sweeps=30)
    scale = found.params.scale.repeat_interleave(8, dim=1)
    least = cost(x, weight - found.dequantize())
    for column in range(24):
        for value in range(16):
            other = found.values.clone()
            other[:, column] = value
            assert bool((cost(x, weight - (other - 8.0) * scale) >= least * (1.0 - 1e-4)).all())


def test_uncorrelated_inputs_leave_nothing_to_gain() -> None:
    weight, grid = normal(8, 32), GroupGrid(4, 16)
    statistics = InputStatistics(torch.eye(32) * 5.0, torch.ones(32), 5)
    assert torch.equal(gptq(weight, statistics, grid).values, rtn(weight, grid).values)


def test_dead_inputs_are_rounded_and_disturb_nobody() -> None:
    weight, x = normal(16, 64), correlated(300, 64)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[[0, 7, 40, 63]] = True
    x[:, dead] = 0.0
    grid = GroupGrid(4, 32)
    found = gptq(weight, InputStatistics.of(x), grid)
    assert found.report["dead_inputs"] == 4
    assert torch.equal(found.values[:, dead], rtn(weight, grid).values[:, dead])
    other = weight.clone()
    other[:, dead] *= -1.0  # the same ranges
    assert torch.equal(gptq(other, InputStatistics.of(x), grid).values[:, ~dead], found.values[:, ~dead])


def test_inputs_that_were_always_zero() -> None:
    weight, grid = normal(4, 16), GroupGrid(4, 8)
    found = gptq(weight, InputStatistics.of(torch.zeros(10, 16)), grid)
    assert torch.equal(found.values, rtn(weight, grid).values)
    assert found.report == {"dead_inputs": 16}


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_fewer_rows_than_inputs(rows: int) -> None:
    weight, x = normal(16, 64), correlated(rows, 64)
    grid = GroupGrid(4, 32)
    found = gptq(weight, InputStatistics.of(x), grid)
    assert bool(torch.isfinite(found.dequantize()).all())
    assert output_error(x, weight, found.dequantize()) < 0.1 * output_error(x, weight, rtn(weight, grid).dequantize())


def test_a_hessian_that_is_not_positive_definite_is_dampened_more_and_reported() -> None:
    weight, x = normal(16, 64), correlated(300, 64)
    hessian = InputStatistics.of(x).hessian
    eigenvalues, vectors = torch.linalg.eigh(hessian.double())
    mean = float(hessian.diagonal().mean())
    eigenvalues[0] = -0.05 * mean  # 1% is not enough, 10% is
    broken = ((vectors * eigenvalues) @ vectors.T).float()
    found = gptq(weight, InputStatistics(broken, torch.ones(64), 300), GroupGrid(4, 32))
    assert found.report["retries"] == 1
    assert found.report["dampening"] == pytest.approx(0.1)
    assert bool(torch.isfinite(found.dequantize()).all())
    grid = GroupGrid(4, 32)
    assert gptq(weight, InputStatistics.of(x), grid).report["retries"] == 0
    hopeless = InputStatistics(torch.full((64, 64), 1e9).fill_diagonal_(1.0), torch.ones(64), 1)
    with pytest.raises(ValueError, match="not positive definite"):
        gptq(weight, hopeless, grid)


def test_refusals() -> None:
    weight, statistics, grid = normal(4, 16), InputStatistics.of(normal(20, 16)), GroupGrid(4, 8)
    with pytest.raises(ValueError, match="statistics are of 16 inputs"):
        gptq(normal(4, 24), statistics, grid)
    with pytest.raises(ValueError, match="dampening"):
        gptq(weight, statistics, grid, dampening=0.0)
    with pytest.raises(ValueError, match="block_cols"):
        gptq(weight, statistics, grid, block_cols=0)
    with pytest.raises(ValueError, match="sweeps"):
        gptq(weight, statistics, grid, sweeps=-1)
    with pytest.raises(ValueError, match="search must be"):
        gptq(weight, statistics, grid, search="best")
    broken = InputStatistics.of(normal(20, 16).index_fill(1, torch.tensor([3]), float("nan")))
    with pytest.raises(ValueError, match="`statistics` hold NaN"):
        gptq(weight, broken, grid)
    weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="`weight` holds NaN"):
        gptq(weight, statistics, grid)
