"""HQQ: smaller Σ|w - ŵ|^p than rounding, less loss of ordinary weights beside outliers, and the schedule in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.quantization.groupwise import GroupGrid, hqq, rtn

from . import oracle
from .problems import normal


def outlying(out: int = 64, inputs: int = 256) -> Tensor:
    """Heavy tails, and groups that are off centre."""
    weight = normal(out, inputs) * 0.05
    weight += 0.03 * normal(out, inputs // 32, seed=1).repeat_interleave(32, dim=1)
    weight[:, ::29] *= 3.0
    return weight


def cost(weight: Tensor, quantized: Tensor, p: float) -> float:
    return float(np.power(np.abs(weight.double().numpy() - quantized.double().numpy()), p).sum())


@pytest.mark.parametrize("size", [32, 64, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("p", [0.7, 1.0])
def test_costs_less_than_rounding(size: int | None, symmetric: bool, p: float) -> None:
    weight, grid = outlying(), GroupGrid(4, size, symmetric)
    found, nearest = hqq(weight, grid, p=p), rtn(weight, grid)
    assert not torch.equal(found.values, nearest.values)
    assert cost(weight, found.dequantize(), p) < 0.98 * cost(weight, nearest.dequantize(), p)
    assert cost(weight, found.dequantize(), 2.0) < 1.0 * cost(weight, nearest.dequantize(), 2.0)


def test_no_weight_is_clipped_by_more_than_half_a_step() -> None:
    weight = outlying()
    found = hqq(weight, GroupGrid(4, 32))
    step = found.params.scale.abs().repeat_interleave(32, dim=1)
    # bfloat16 rounds a scale by at most 1/256, which 8 steps multiply.
    assert bool(((found.dequantize() - weight).abs() <= step * (0.5 + 8.5 / 256)).all())


def test_the_minimum_is_the_papers() -> None:
    weight, size, p = outlying(16, 64), 32, 0.7
    found = hqq(weight, GroupGrid(4, size, symmetric=False, scale_dtype=torch.float32), p=p)
    assert found.params.minimum is not None
    w = weight.numpy().reshape(16, 2, size).astype(np.float64)
    low, high = np.minimum(w.min(2), 0), np.maximum(w.max(2), 0)
    scale = ((high - low) / 15)[..., None]
    minimum = (-np.clip(np.rint(-low / scale[..., 0]), 0, 15))[..., None] * scale
    best, lowest = minimum, np.full((16, 2), np.inf)
    for step in range(20):
        values = np.clip(np.rint((w - minimum) / scale), 0, 15)
        error = w - values * scale - minimum
        total = (np.abs(error) ** p).sum(2)
        best = np.where((total < lowest)[..., None], minimum, best)
        lowest = np.minimum(total, lowest)
        steps = error / scale
        shrunk = np.sign(steps) * np.maximum(
            np.abs(steps) - np.maximum(np.abs(steps), 1e-8) ** (p - 1) / (10 * 1.01**step), 0
        )
        minimum = (w - shrunk * scale - values * scale).mean(2, keepdims=True)
    # Float32 against float64 may turn a tie, which moves a minimum by a step over the group's size.
    close = np.isclose(found.params.minimum.numpy(), best[..., 0], rtol=1e-4, atol=1e-6)
    assert close.mean() > 0.9


@pytest.mark.parametrize("inputs", [40, 70, 33])
def test_what_fills_the_last_group_up_has_no_say(inputs: int) -> None:
    weight = normal(8, inputs) + 3.0  # far from the zeros that fill up
    for symmetric in (True, False):
        whole = hqq(weight, GroupGrid(4, 32, symmetric))
        tail = hqq(weight[:, inputs // 32 * 32 :], GroupGrid(4, None, symmetric))
        assert torch.equal(whole.params.scale[:, -1], tail.params.scale[:, 0])
        assert torch.equal(whole.dequantize()[:, inputs // 32 * 32 :], tail.dequantize())


def test_whole_step_weights_are_found_exactly() -> None:
    values, _ = oracle.rtn(normal(8, 64).numpy(), 32)
    weight = torch.from_numpy((values - 8) * np.float32(0.125)).float()
    assert torch.equal(hqq(weight, GroupGrid(4, 32, scale_dtype=torch.float32)).dequantize(), weight)
