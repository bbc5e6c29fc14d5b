"""Making up for quantized layers in front, and statistics renewed inside a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import run_batch
from fastcompress.quantization.groupwise import GroupGrid, GroupwiseOptions, InputStatistics, gptq, quantize_weights
from fastcompress.quantization.groupwise.correct import corrected
from fastcompress.quantization.groupwise.statistics import StatisticsCollector

from .problems import Stack, linears, normal, tiny_llama, tokens, vectors

GRID = GroupGrid(4, 16)


def both(x: Tensor, original: Tensor) -> InputStatistics:
    collector = StatisticsCollector(x.shape[1], cross=True)
    for part, other in zip(x.split(50), original.split(50), strict=True):
        collector.update(part, other)
    return collector.finished()


def test_is_the_least_squares_solution() -> None:
    weight, original = normal(6, 20), normal(200, 20, seed=1)
    x = original + 0.3 * normal(200, 20, seed=2)
    found = corrected(weight, both(x, original), 0.01)
    w, a, b = (t.double().numpy() for t in (weight, x, original))
    root = np.sqrt(0.01 * np.square(a).sum(0).mean()) * np.eye(20)
    expected = np.linalg.lstsq(np.vstack([a, root]), np.vstack([b @ w.T, root @ w.T]), rcond=None)[0].T
    # Float32 sums of 200 products, 200 u, times the condition of X^T X, below 10, times weights below 4.
    np.testing.assert_allclose(found.numpy(), expected, atol=200 * 2.0**-24 * 10 * 4)
    assert float((found - weight).abs().max()) > 0.1


def test_equal_inputs_change_nothing() -> None:
    weight, x = normal(6, 20), normal(200, 20, seed=1)
    assert torch.equal(corrected(weight, both(x, x.clone())), weight)
    assert torch.equal(corrected(weight, InputStatistics.of(x)), weight)


def test_other_shapes_mean_no_comparison() -> None:
    collector = StatisticsCollector(8, cross=True)
    collector.update(normal(5, 8), normal(5, 8))
    collector.update(normal(5, 8), normal(4, 8))
    collector.update(normal(5, 8), normal(5, 8))
    assert collector.finished().cross is None
    assert collector.finished().rows == 15


@pytest.mark.parametrize(("make", "data"), [(Stack, vectors), (tiny_llama, tokens)])
def test_the_first_block_is_the_same_and_the_model_nearer(
    make: Callable[[], nn.Module], data: Callable[[], list[Any]]
) -> None:
    batches = data()

    def run(correct: bool) -> tuple[dict[str, Tensor], float]:
        model, original = make(), make()
        options = GroupwiseOptions(correct=correct)
        found = quantize_weights(model, linears(model), GRID, "gptq", batches, options=options)
        with torch.no_grad():
            pairs = [(first(run_batch(model, b)), first(run_batch(original, b))) for b in batches]
        error = sum(float((a - b).square().sum()) for a, b in pairs)
        return {name: result.canonical.dequantize() for name, result in found.items()}, error

    plain, corrected_ = run(False), run(True)
    names = list(plain[0])
    block = [name for name in names if ".0." in name]
    assert block
    assert all(torch.equal(plain[0][name], corrected_[0][name]) for name in block)
    assert any(not torch.equal(plain[0][name], corrected_[0][name]) for name in names)
    assert corrected_[1] < plain[1]


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_statistics_inside_a_block_are_renewed() -> None:
    model, reference, batches = Stack(), Stack(), vectors()
    options = GroupwiseOptions(sequential=True, search="minmax", sweeps=0)
    found = quantize_weights(model, linears(model), GRID, "gptq", batches, options=options)
    original = reference.blocks[1].down.weight.detach().clone()
    for name, layer in linears(reference).items():
        layer.weight = nn.Parameter(found[name].canonical.dequantize())
    seen: list[Tensor] = []
    reference.blocks[1].down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    expected = gptq(original, InputStatistics.of(torch.cat(seen)), GRID).dequantize()
    # Float32 sums in another order: a weight at a tie may turn, with the rest of its row.
    assert float((expected == found["blocks.1.down"].canonical.dequantize()).float().mean()) > 0.99
